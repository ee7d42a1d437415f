"""What tests share: golden data, small checkpoints, stand-ins, planted defects."""
