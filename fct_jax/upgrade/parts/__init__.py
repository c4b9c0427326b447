"""Translation in pieces, by processes that need not know each other.

A gallery is cut into pieces: runs of its files, or ranges of rows. Every process computes some of
them and publishes each atomically, with a record that holds the checksums of its files; a record
whose files agree means that the piece is done, whoever made it. So a process may be killed, started
twice, or run on two hosts. At the end one process makes the pieces the gallery.
"""
