"""What every room stands on: errors, files that appear whole, workers, downloads.

It decides no byte of an output.
"""
