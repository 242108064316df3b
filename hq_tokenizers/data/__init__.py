"""Images in, batches of tensors out: the embedded digits, folders, parquet files, Hub data sets, and encoded codes."""
