"""`make faults`: faults under load, and a ledger of what the service said, held against the tables after each."""
