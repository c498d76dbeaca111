"""Where documents come from: packaged corpora, local files, the Hugging Face Hub."""
