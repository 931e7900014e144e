"""Independent jobs in one process, two at a time on a CPU: one compiles while the other computes.

A compiler works on one core and small layers do not fill two, so two trainings in two threads end
sooner than one after the other. Their arithmetic is that of a run alone. An accelerator's memory
is left to one at a time.
"""

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ctfake_jax.runtime import preemption


def run_jobs(jobs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
  """The result of each job by its name, begun in this order.

  When one raises, or the process is asked to stop, trainings save and stop, jobs that have not
  begun are left, and the first error is raised.
  """
  workers = 2 if jax.default_backend() == 'cpu' else 1
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = {name: pool.submit(job) for name, job in jobs.items()}
    try:
      for future in concurrent.futures.as_completed(futures.values()):
        future.result()
    except BaseException:
      with preemption.stopping():
        pool.shutdown(cancel_futures=True)
      raise
  return {name: future.result() for name, future in futures.items()}
