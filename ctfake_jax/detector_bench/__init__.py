"""Every method of telling fakes in one table, tested on generators that it never saw."""
