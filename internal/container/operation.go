package container

import "time"

// Exec describes one more process in a running container. It has the environment, user
// and security settings of the container.
type Exec struct {
	Command    []string
	Env        []string // added to the container's
	WorkingDir string   // "" is the container's
}

// Stats is what a container, or a sandbox with all its containers, uses.
type Stats struct {
	At              time.Time
	CPUNanos        uint64 // CPU time since the start
	MemoryBytes     uint64 // usage including the page cache
	WorkingSetBytes uint64 // usage without inactive page cache: what eviction looks at
	Pids            uint64
}

// Progress says how far a pull has come.
type Progress struct {
	Layers     int   // blobs known so far
	LayersDone int   // blobs here
	TotalBytes int64 // of the known blobs
	DoneBytes  int64
}

// PullOptions say how to pull an image.
type PullOptions struct {
	Credentials []Credentials  // tried in order; none is anonymous
	Progress    func(Progress) // called about five times a second; may be nil
}

// ImportOptions say how to take in an archive.
type ImportOptions struct {
	Name   string // gives the image this name as well, such as "hello:dev"
	Pinned bool   // never collected
}
