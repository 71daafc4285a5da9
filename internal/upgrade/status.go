package upgrade

// Path is where a node's API tells of, and takes, programs; a hash below it is one of them.
const Path = "/gantry/upgrade"

// Status is what a node says of the program that it runs.
type Status struct {
	Running  Program `json:"running"`
	Platform string  `json:"platform"`          // such as linux/amd64
	State    State   `json:"state,omitempty"`   // of the last change; empty: there was none
	Failure  string  `json:"failure,omitempty"` // why the last trial failed
	Tried    string  `json:"tried,omitempty"`   // the hash of what failed
	Previous Program `json:"previous"`
}
