"""Small trained networks, sound ones and ones with a planted fault, as files; `make corpus` writes them anew."""
