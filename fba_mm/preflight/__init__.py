"""What can be found wrong with a config or its data before anything is trained or written."""
