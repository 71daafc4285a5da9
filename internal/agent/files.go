package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/agent/crilog"
	"gantry.dev/gantry/internal/agent/podstatus"
	"gantry.dev/gantry/internal/container"
)

// Limits of a termination message: from its file, and from the log.
const (
	maxTerminationFile  = 4096
	maxTerminationLog   = 2048
	maxTerminationLines = 80
)

func (a *Agent) podDir(uid types.UID) string { return filepath.Join(a.opts.PodsDir, string(uid)) }

func (a *Agent) podLogDir(namespace, name string, uid types.UID) string {
	return filepath.Join(a.opts.LogDir, namespace+"_"+name+"_"+string(uid))
}

// terminationPath is the file behind a container's terminationMessagePath.
func (w *worker) terminationPath(name string, attempt int) string {
	return filepath.Join(w.agent.podDir(w.uid), "containers", name, strconv.Itoa(attempt))
}

// terminationMessage is what a container left behind when it ended: its file, or the end of
// its log when the file is empty, it failed and its policy says so.
func (w *worker) terminationMessage(pod *corev1.Pod, c container.Status) string {
	if message, ok := w.messages[c.ID]; ok {
		return message
	}
	spec := podstatus.Container(pod, c.Name)
	if spec == nil || spec.TerminationMessagePath == "" {
		return ""
	}
	message, err := tail(w.terminationPath(c.Name, c.Attempt), maxTerminationFile)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		message = fmt.Sprintf("Error on reading termination log %s: %v", spec.TerminationMessagePath, err)
	case message == "" && c.ExitCode != 0 && spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError:
		message, err = crilog.Tail(c.LogPath, maxTerminationLines, maxTerminationLog)
		if err != nil {
			message = fmt.Sprintf("Error on reading termination message from logs: %v", err)
		}
	}
	w.messages[c.ID] = message
	return message
}

// tail reads the last n bytes of a file.
func tail(path string, n int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	buf := make([]byte, min(n, info.Size()))
	read, err := f.ReadAt(buf, max(0, info.Size()-n))
	if read == len(buf) {
		err = nil
	}
	return string(buf[:read]), err
}

// removeFiles removes what is left of a pod that the API has forgotten: its logs and the
// files of its folder. Volumes were torn down before; what is still mounted is never entered,
// because the folder is then not empty of mounts and TearDown refuses.
func (a *Agent) removeFiles(namespace, name string, uid types.UID) error {
	a.puller.forget(uid)
	a.statuses.forget(uid)
	if a.opts.KeepLogs != nil {
		if taken, err := a.opts.KeepLogs.End(namespace, name, uid); taken || err != nil {
			return err
		}
	}
	if err := os.RemoveAll(a.podLogDir(namespace, name, uid)); err != nil {
		return fmt.Errorf("removing the pod's logs: %w", err)
	}
	return nil
}
