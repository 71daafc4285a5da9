package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry.dev/gantry/internal/container"
)

// maxAccountsFile bounds what is read of an image's /etc/passwd and /etc/group.
const maxAccountsFile = 1 << 20

// accounts are the account files of an image; empty where it has none.
type accounts struct{ passwd, group []byte }

// accounts reads the account files of an image, once for each image: its file system is
// mounted at target for that.
func (r *Runtime) accounts(img *imageInfo, mounts []mount.Mount, target string) (found accounts, err error) {
	if cached, ok := r.imageCache.accounts(img.chainID); ok {
		return cached, nil
	}
	if err := mount.All(mounts, target); err != nil {
		return accounts{}, fmt.Errorf("mount root file system: %w", err)
	}
	defer func() {
		if unmountErr := unmountAll(target); err == nil {
			err = unmountErr
		}
	}()
	root, err := os.OpenRoot(target) // links in the image lead nowhere else
	if err != nil {
		return accounts{}, fmt.Errorf("open root file system: %w", err)
	}
	defer root.Close()
	if found.passwd, err = readAccountsFile(root, "etc/passwd"); err != nil {
		return accounts{}, err
	}
	if found.group, err = readAccountsFile(root, "etc/group"); err != nil {
		return accounts{}, err
	}
	r.imageCache.setAccounts(img.chainID, found)
	return found, nil
}

// readAccountsFile reads one file; one that is missing or no plain file is empty.
func readAccountsFile(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil //nolint:nilerr // images without account files are common
	}
	if info.Size() > maxAccountsFile {
		return nil, fmt.Errorf("the image's /%s has %d bytes, more than the %d that are read", name, info.Size(), maxAccountsFile)
	}
	data, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the image's /%s: %w", name, err)
	}
	return data, nil
}

// resolveUser settles user and groups: the pod's, else the image's, looked up in the
// image's account files.
func resolveUser(sec container.Security, imageUser string, acc accounts) (specs.User, error) {
	var name string
	switch {
	case sec.User != nil:
		name = strconv.FormatInt(*sec.User, 10)
	case sec.UserName != "":
		name = sec.UserName
	default:
		name = imageUser
	}
	if sec.Group != nil {
		account, _, _ := strings.Cut(name, ":")
		if account == "" {
			account = "0"
		}
		name = account + ":" + strconv.FormatInt(*sec.Group, 10)
	}
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, bytes.NewReader(acc.passwd), bytes.NewReader(acc.group))
	if err != nil {
		return specs.User{}, fmt.Errorf("user %q: %w", name, err)
	}
	groups := []uint32{uint32(found.Gid)}
	add := func(gid uint32) {
		if !slices.Contains(groups, gid) {
			groups = append(groups, gid)
		}
	}
	if sec.MergeImageGroups {
		// With a group in its name GetExecUser looks no further: ask for the account alone.
		memberships, err := imageGroups(name, acc)
		if err != nil {
			return specs.User{}, err
		}
		for _, gid := range memberships {
			add(uint32(gid))
		}
	}
	for _, gid := range sec.SupplementalGroups {
		add(uint32(gid))
	}
	return specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid), AdditionalGids: groups}, nil
}

// processUser is a user as the agent sees it.
func processUser(u specs.User) *container.User {
	out := &container.User{UID: int64(u.UID), GID: int64(u.GID)}
	for _, gid := range u.AdditionalGids {
		out.Groups = append(out.Groups, int64(gid))
	}
	return out
}

// readUser reads the user of a container that is there from its bundle; nil when that cannot be read.
func readUser(bundle string) *container.User {
	var spec struct {
		Process struct {
			User specs.User `json:"user"`
		} `json:"process"`
	}
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil || json.Unmarshal(data, &spec) != nil {
		return nil
	}
	return processUser(spec.Process.User)
}

// imageGroups returns the groups that the image's /etc/group gives an account.
func imageGroups(name string, acc accounts) ([]int, error) {
	account, _, _ := strings.Cut(name, ":")
	found, err := user.GetExecUser(account, nil, bytes.NewReader(acc.passwd), bytes.NewReader(acc.group))
	if err != nil {
		return nil, fmt.Errorf("groups of user %q: %w", account, err)
	}
	return found.Sgids, nil
}
