"""What is trained on: data sets -> mix of tasks -> packed rows."""
