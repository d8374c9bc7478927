"""Parts of download_coco: fetching a file, and unpacking an archive."""
