"""The process: devices, preemption, memory, compilation cache, batches, progress."""
