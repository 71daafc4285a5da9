package backup

import (
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
)

// ErrKey says that a backup was made for another recovery key.
var ErrKey = errors.New("the backup was made for another recovery key")

// Key is a recovery key: who has its secret half can read backups, who has its public half can make them.
type Key struct {
	Secret string // AGE-SECRET-KEY-1...
	Public string // age1...
}

// NewKey makes a recovery key.
func NewKey() (Key, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return Key{}, fmt.Errorf("make a recovery key: %w", err)
	}
	return Key{Secret: identity.String(), Public: identity.Recipient().String()}, nil
}

// CheckPublic says what is wrong with the public half of a key.
func CheckPublic(public string) error {
	_, err := recipient(public)
	return err
}

func recipient(public string) (*age.X25519Recipient, error) {
	r, err := age.ParseX25519Recipient(strings.TrimSpace(public))
	if err != nil {
		return nil, errors.New("this is not the public half of a recovery key, which begins with age1")
	}
	return r, nil
}

// identity reads a secret half out of a text that may have comments around it. The text is never part of an error.
func identity(secret string) (*age.X25519Identity, error) {
	for line := range strings.Lines(secret) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if i, err := age.ParseX25519Identity(line); err == nil {
			return i, nil
		}
		break
	}
	return nil, errors.New("this is not a recovery key, which begins with AGE-SECRET-KEY-1")
}
