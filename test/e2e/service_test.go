//go:build linux

package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const systemd = "/lib/systemd/systemd"

// bootScript makes a machine's own view of control groups, /run and /etc and becomes its systemd.
// Units that would touch the host are masked.
const bootScript = `
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
if [ -d /sys/fs/cgroup/unified ]; then
	v1=$(awk 'NR > 1 && $4 == 1 {print $1}' /proc/cgroups)
	mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
	for c in $v1; do
		mkdir /sys/fs/cgroup/$c
		mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c || rmdir /sys/fs/cgroup/$c
	done
	mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
	mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
	mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
else
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mkdir -p /run/lock /run/etc
mount -t tmpfs tmpfs /run/etc
mkdir /run/etc/up /run/etc/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/up,workdir=/run/etc/work /etc
cd /etc/systemd/system
for u in getty.target networking.service systemd-binfmt.service systemd-hwdb-update.service systemd-logind.service \
	systemd-modules-load.service systemd-networkd.service systemd-random-seed.service systemd-remount-fs.service \
	systemd-resolved.service systemd-sysctl.service systemd-sysusers.service systemd-timesyncd.service \
	systemd-tmpfiles-setup-dev.service systemd-tmpfiles-setup.service systemd-udev-trigger.service systemd-udevd.service \
	systemd-update-utmp.service proc-sys-fs-binfmt_misc.automount sys-kernel-config.mount; do
	ln -sf /dev/null $u
done
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' >machine.target
container=other exec ` + systemd + ` --system --unit=machine.target --log-target=null
`

// boot gives the machine a systemd of its own.
func (c *cluster) boot(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(systemd); err != nil {
		t.Skipf("this machine has no systemd: %v", err)
	}
	group := filepath.Base(c.ns)
	// Control groups first, so that the new namespace has them as its root.
	script := `
for d in /sys/fs/cgroup /sys/fs/cgroup/*; do
	[ -e $d/cgroup.procs ] || continue
	mkdir -p $d/` + group + ` || continue
	for f in cpuset.cpus cpuset.mems; do [ ! -e $d/` + group + `/$f ] || [ ! -s $d/$f ] || cat $d/$f >$d/` + group + `/$f; done
	echo $$ >$d/` + group + `/cgroup.procs
done
exec nsenter --net=` + c.ns + ` unshare --pid --fork --kill-child --mount --uts --ipc --cgroup sh -c "$0"`
	cmd := exec.Command("sh", "-c", script, bootScript)
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.enter = nil
		_ = cmd.Process.Kill() // unshare takes its child along
		_ = cmd.Wait()
		eventually(t, "the machine's control groups are removed", 20*time.Second, func() error { return removeGroups(group) })
	})
	eventually(t, "systemd runs", 30*time.Second, func() error {
		for pid := range processes(func(_ int, cmdline string) bool {
			// Not the shells and unshare above it: their arguments hold the script, and they are in another pid namespace.
			return strings.HasPrefix(cmdline, systemd+" --system --unit=machine.target")
		}) {
			if at, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && sameFile(t, at, c.ns) {
				c.enter = []string{"-t", fmt.Sprint(pid), "--pid", "--mount", "--uts", "--ipc", "--cgroup"}
			}
		}
		if c.enter == nil {
			return fmt.Errorf("it has not begun: %s", output.String())
		}
		if r := c.run(t, "", "systemctl", "is-active", "machine.target"); r.code != 0 {
			return fmt.Errorf("systemctl: %v", r)
		}
		return nil
	})
}

func sameFile(t *testing.T, info fs.FileInfo, path string) bool {
	t.Helper()
	other, err := os.Stat(path)
	return err == nil && os.SameFile(info, other)
}

// removeGroups removes the control group of that name, and those below, from every hierarchy.
func removeGroups(name string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return err
	}
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		var folders []string
		_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return nil
		})
		for i := len(folders) - 1; i >= 0; i-- {
			if err := os.Remove(folders[i]); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

// TestService installs Gantry as a systemd service, restarts and kills it there, and removes every trace.
func TestService(t *testing.T) {
	c := newCluster(t)
	c.boot(t)
	if r := c.gantry(t, "", "up", "--service"); r.code != 0 || !strings.Contains(r.stdout, ":6443") {
		t.Fatalf("up --service: %v\n%v", r, c.run(t, "", "journalctl", "-u", "gantry", "-n", "50", "--no-pager"))
	}
	for _, args := range [][]string{{"is-active", "gantry"}, {"is-enabled", "gantry"}} {
		if r := c.run(t, "", "systemctl", args...); r.code != 0 {
			t.Errorf("systemctl %s: %v", strings.Join(args, " "), r)
		}
	}
	c.load(t, true)
	ns := c.namespace(t, "service")
	c.apply(t, ns, rolloutManifest)
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	before := c.containers(t, ns)

	c.restarted(t, "a restart", "restart", "gantry")
	c.sameContainers(t, ns, before)
	c.restarted(t, "kill -9", "kill", "--signal=KILL", "--kill-whom=main", "gantry")
	c.sameContainers(t, ns, before)

	if r := c.gantry(t, "", "down"); r.code != 0 {
		t.Errorf("gantry down: %v", r)
	}
	if r := c.run(t, "", "systemctl", "is-active", "gantry"); strings.TrimSpace(r.stdout) != "inactive" {
		t.Errorf("after down the service is %v", r)
	}
	if left := c.gantryProcesses(); len(left) > 0 {
		t.Errorf("after down there are still %v", left)
	}
	if r := c.gantry(t, "", "up", "--service"); r.code != 0 {
		t.Fatalf("up --service after down: %v", r)
	}
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	if r := c.gantry(t, "", "uninstall", "--yes"); r.code != 0 {
		t.Fatalf("gantry uninstall: %v", r)
	}
	if r := c.run(t, "", "systemctl", "cat", "gantry"); r.code == 0 {
		t.Errorf("after uninstall the unit is still known: %v", r)
	}
	if left := c.gantryProcesses(); len(left) > 0 {
		t.Errorf("after uninstall there are still %v", left)
	}
	if links := c.run(t, "", "ip", "-br", "link").stdout; strings.Count(links, "\n") != 2 {
		t.Errorf("after uninstall the links are\n%s", links)
	}
	if r := c.run(t, "", "ls", "-A", "/etc/systemd/system/gantry.service", c.dir); r.stdout != "" {
		t.Errorf("after uninstall there is still %s", r.stdout)
	}
}

// restarted calls systemctl and waits until another main process serves.
func (c *cluster) restarted(t *testing.T, what string, systemctl ...string) {
	t.Helper()
	old := c.mainPID(t)
	if r := c.run(t, "", "systemctl", systemctl...); r.code != 0 {
		t.Fatalf("systemctl %s: %v", strings.Join(systemctl, " "), r)
	}
	eventually(t, "gantry serves after "+what, 60*time.Second, func() error {
		if pid := c.mainPID(t); pid == old || pid == "0" {
			return fmt.Errorf("the main process is %s", pid)
		}
		if r := c.try(t, "get", "--raw", "/readyz"); r.code != 0 {
			return fmt.Errorf("readyz: %v", r)
		}
		return nil
	})
	c.kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=30s")
}

func (c *cluster) mainPID(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(c.run(t, "", "systemctl", "show", "--property=MainPID", "--value", "gantry").stdout)
}

// gantryProcesses are the machine's processes that are not systemd's own.
func (c *cluster) gantryProcesses() map[int]string {
	found := c.processes()
	for pid, cmdline := range found {
		if cmdline == "" || strings.Contains(cmdline, "systemd") || strings.Contains(cmdline, "dbus") {
			delete(found, pid)
		}
	}
	return found
}
