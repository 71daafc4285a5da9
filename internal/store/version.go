package store

// Version returns a function that tells how far the table of a kind has changed: the revision
// of its last change since the store was opened, or of the newest object that was loaded; 0
// while there was none. A call costs one atomic load.
func (s *Store) Version(kind string) func() int64 {
	t, err := s.table(kind)
	if err != nil {
		return func() int64 { return 0 } // it has no table, so nothing changes
	}
	return t.version.Load
}
