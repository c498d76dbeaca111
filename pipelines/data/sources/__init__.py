"""Read documents from packaged corpora, local files and the Hugging Face Hub."""
