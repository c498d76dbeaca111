"""How a flow runs stages: in a checkout, supervised, recorded, one training at a time."""
