"""What a run tells: its plan, its figures, its validations, its warnings."""
