package backup

import (
	"errors"
	"time"
)

// Path is where the API takes and tells everything about backups. Who may do it is said by RBAC on this nonResourceURL: "get" the
// State, "update" the Settings, "create" a backup, which is the answer.
const Path = "/gantry/v1/backup"

// Trailers of the answer that is a backup: the manifest as JSON, and what kept it from getting its end.
const (
	TrailerManifest = "Gantry-Backup-Manifest"
	TrailerError    = "Gantry-Backup-Error"
)

// DefaultKeep is how many backups a schedule keeps.
const DefaultKeep = 7

// Settings are what the cluster knows of its backups.
type Settings struct {
	Public   string `json:"public,omitempty"`   // half of the recovery key
	Schedule string `json:"schedule,omitempty"` // see ParseSchedule; empty is none
	Place    string `json:"place,omitempty"`    // of scheduled backups, see Open
	Keep     int    `json:"keep,omitempty"`     // how many scheduled backups stay
	Volumes  bool   `json:"volumes,omitempty"`  // local volumes are part of scheduled backups
	// Credentials are for Place. They are not shown.
	Credentials *Credentials `json:"credentials,omitempty"`
}

// Check says what is wrong with settings.
func (s *Settings) Check() error {
	if s.Public != "" {
		if err := CheckPublic(s.Public); err != nil {
			return err
		}
	}
	if s.Keep < 0 {
		return errors.New("keep is below 0")
	}
	if s.Schedule == "" {
		return nil
	}
	if s.Public == "" {
		return errors.New("there is no recovery key yet: make the first backup with \"gantry backup create\"")
	}
	if _, err := ParseSchedule(s.Schedule); err != nil {
		return err
	}
	_, err := s.Open()
	return err
}

// Open is the place of scheduled backups.
func (s *Settings) Open() (Place, error) {
	if s.Place == "" {
		return nil, errors.New("there is no place for backups: say a directory or s3://BUCKET/PREFIX")
	}
	var c Credentials
	if s.Credentials != nil {
		c = *s.Credentials
	}
	return Open(s.Place, c)
}

// Status is what became of scheduled backups.
type Status struct {
	Tried  time.Time `json:"tried,omitzero"` // when the last one began
	Done   time.Time `json:"done,omitzero"`  // when the last good one ended
	Name   string    `json:"name,omitempty"` // of the last good one
	Bytes  int64     `json:"bytes,omitempty"`
	Failed string    `json:"failed,omitempty"` // why the last one is not good; empty if it is
}

// State is all that the API tells.
type State struct {
	Cluster  string    `json:"cluster"` // UID of the namespace kube-system
	Settings Settings  `json:"settings"`
	Status   Status    `json:"status"`
	Next     time.Time `json:"next,omitzero"`
	Items    []Item    `json:"items,omitempty"`
	Trouble  string    `json:"trouble,omitempty"` // why Items could not be read
}
