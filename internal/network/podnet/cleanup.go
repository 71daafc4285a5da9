package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cleanup removes every trace of the pod network: namespaces, links with their addresses and
// routes, the nftables table, and the state under opts.Dir. It goes on after an error and
// returns all of them. Nothing may use the network any more.
func Cleanup(ctx context.Context, opts Options) error {
	n, err := New(opts)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("removing the pod network: %w", err)
	}
	errs := []error{deleteTable(&nftables.Conn{}), n.removeNamespaces()}
	if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("removing the pod network: %w", err)
	}
	defer n.nl.Close()
	if bridge, err := n.nl.LinkByName(n.opts.Bridge); err == nil {
		n.bridge = bridge.Attrs().Index
		errs = append(errs, n.removeStrayLinks(nil), n.removeLink(n.opts.Bridge))
	}
	errs = append(errs, n.removeLink(n.opts.DNSLink), removeFiles(n.store.dir), removeFiles(n.nsDir()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the pod network: %w", err)
	}
	return nil
}

// removeNamespaces unpins every pod and takes the shared mount away.
func (n *Network) removeNamespaces() error {
	entries, err := os.ReadDir(n.nsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		errs = append(errs, removeNamespace(n.nsPath(entry.Name())))
	}
	for {
		if err := unix.Unmount(n.nsDir(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			break // not mounted any more
		}
	}
	return errors.Join(errs...)
}

// removeFiles removes a directory of plain files; it never descends.
func removeFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		errs = append(errs, os.Remove(filepath.Join(dir, entry.Name())))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}
