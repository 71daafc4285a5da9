// Package backup is the form of a backup, and the places where backups lie.
//
// A backup is one stream: a tar archive, compressed by zstd, encrypted by age to the public half of a recovery key. It begins
// with a Head and ends with a Manifest, which says what is in it and what is not. A stream without its end is no backup: age
// authenticates every part of it and its end. What goes in and what is done with it is not known here; internal/server has that.
//
// Start at NewWriter, NewReader and Open (a Place).
package backup
