package store

// Version returns a function that tells how far the table of a kind has changed: the revision
// of its last change since the store was opened, or of the newest object that was loaded; 0
// while there was none. A call costs one atomic load.
func (s *Store) Version(kind string) func() int64 { return s.table(kind).version.Load }
