package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/platform/app"
)

const (
	// backupObject names the Secret with the settings and the ConfigMap with the status of backups.
	backupObject   = "gantry-backup"
	backupSettings = "settings.json"
	backupStatus   = "status.json"

	// backupLook is how often the schedule is looked at.
	backupLook = 15 * time.Second
	// backupRetry is the time until a scheduled backup that failed is tried again.
	backupRetry = 10 * time.Minute
	// backupList bounds the question what backups there are.
	backupList = 20 * time.Second
	// maxManifest is how long a manifest may be that goes behind an answer.
	maxManifest = 200 << 10
)

// platformAdmin is a client that may do everything with the platform's kinds too.
func (cp *ControlPlane) platformAdmin() (*client.Client, error) {
	scheme, err := app.NewScheme()
	if err != nil {
		return nil, err
	}
	return client.New(client.Options{Registry: cp.registry, Manager: "gantry-backup", Scheme: scheme, User: &user.DefaultInfo{
		Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup},
	}})
}

// withBackup serves backup.Path and passes all else on.
func (cp *ControlPlane) withBackup(next http.Handler) http.Handler {
	if cp.opts.Backup == nil {
		return next
	}
	verbs := map[string]string{http.MethodGet: "get", http.MethodPut: "update", http.MethodPost: "create"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != backup.Path {
			next.ServeHTTP(w, r)
			return
		}
		verb := verbs[r.Method]
		if verb == "" {
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		response, known, err := cp.authn.AuthenticateRequest(r)
		if err != nil || !known {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		decision, _, err := cp.authorizer.Authorize(r.Context(), &authorizer.AttributesRecord{User: response.User, Verb: verb, Path: backup.Path})
		if err != nil || decision != authorizer.DecisionAllow {
			http.Error(w, fmt.Sprintf("user %q may not %s %s", response.User.GetName(), verb, backup.Path), http.StatusForbidden)
			return
		}
		switch verb {
		case "get":
			cp.serveBackupState(w, r)
		case "update":
			cp.serveBackupSettings(w, r)
		default:
			cp.serveBackup(w, r)
		}
	})
}

func (cp *ControlPlane) serveBackupState(w http.ResponseWriter, r *http.Request) {
	state, err := cp.backupState(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	state.Settings.Credentials = nil
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(state)
}

func (cp *ControlPlane) backupState(ctx context.Context) (state backup.State, err error) {
	if state.Cluster, err = cp.clusterUID(ctx); err != nil {
		return state, err
	}
	if state.Settings, _, err = cp.readSettings(ctx); err != nil {
		return state, err
	}
	if state.Status, err = cp.readBackupStatus(ctx); err != nil {
		return state, err
	}
	if state.Settings.Schedule != "" {
		state.Next, _ = nextBackup(&state.Settings, &state.Status, time.Now())
	}
	if state.Settings.Place == "" {
		return state, nil
	}
	ctx, cancel := context.WithTimeout(ctx, backupList)
	defer cancel()
	place, err := state.Settings.Open()
	if err == nil {
		state.Items, err = place.List(ctx)
	}
	if err != nil {
		state.Trouble = err.Error()
	}
	return state, nil
}

func (cp *ControlPlane) serveBackupSettings(w http.ResponseWriter, r *http.Request) {
	var settings backup.Settings
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&settings); err != nil {
		http.Error(w, "the settings cannot be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	old, secret, err := cp.readSettings(r.Context())
	if err != nil && secret != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if settings.Credentials == nil && settings.Place == old.Place {
		settings.Credentials = old.Credentials // they are never shown, so who changes something else cannot send them
	}
	if err := settings.Check(); err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	if err := cp.writeSettings(r.Context(), settings, secret); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (cp *ControlPlane) writeSettings(ctx context.Context, settings backup.Settings, secret *corev1.Secret) error {
	text, err := json.Marshal(settings)
	if err != nil {
		return fmt.Errorf("writing the settings of backups: %w", err)
	}
	if secret == nil {
		secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.PlatformNamespace, Name: backupObject}}
		secret.Data = map[string][]byte{backupSettings: text}
		return cp.admin.Create(ctx, secret)
	}
	secret = secret.DeepCopy()
	secret.Data = map[string][]byte{backupSettings: text}
	return cp.admin.Update(ctx, secret)
}

// serveBackup answers with a backup. Its manifest, or why it has no end, comes behind it.
func (cp *ControlPlane) serveBackup(w http.ResponseWriter, r *http.Request) {
	settings, _, err := cp.readSettings(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if settings.Public == "" {
		http.Error(w, "there is no recovery key yet", http.StatusConflict)
		return
	}
	w.Header().Set("Trailer", backup.TrailerManifest+", "+backup.TrailerError)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	manifest, err := cp.backUp(r.Context(), w, settings.Public, r.URL.Query().Get("volumes") == "true")
	if err != nil {
		if r.Context().Err() == nil {
			cp.opts.Logger.Warn("a backup failed", "error", err)
		}
		w.Header().Set(backup.TrailerError, oneLine(err.Error()))
		return
	}
	text, err := json.Marshal(manifest)
	if err == nil && len(text) > maxManifest {
		manifest.Images, manifest.Missing = nil, append(manifest.Missing[:min(len(manifest.Missing), 100):100], "and more, which the backup itself says")
		text, err = json.Marshal(manifest)
	}
	if err != nil {
		text = []byte("{}")
	}
	w.Header().Set(backup.TrailerManifest, string(text))
}

// oneLine is text that may stand in a header.
func oneLine(text string) string {
	out := []rune(text)
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = ' '
		}
	}
	return string(out)
}

func (cp *ControlPlane) readBackupStatus(ctx context.Context) (status backup.Status, err error) {
	object := &corev1.ConfigMap{}
	err = cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: backupObject}, object)
	if apierrors.IsNotFound(err) {
		return status, nil
	}
	if err != nil {
		return status, fmt.Errorf("reading the status of backups: %w", err)
	}
	_ = json.Unmarshal([]byte(object.Data[backupStatus]), &status) // what cannot be read is no status
	return status, nil
}

// nextBackup is when the next scheduled backup is due. It is pure.
func nextBackup(settings *backup.Settings, status *backup.Status, now time.Time) (time.Time, error) {
	schedule, err := backup.ParseSchedule(settings.Schedule)
	if err != nil {
		return time.Time{}, err
	}
	from := status.Tried
	if from.IsZero() {
		return schedule.Next(now), nil
	}
	next := schedule.Next(from)
	if again := from.Add(backupRetry); status.Failed != "" && again.Before(next) {
		next = again
	}
	return next, nil
}

// runBackups makes backups by the schedule. It runs where the controllers run. A time that passed while nobody ran is made up for
// once.
func (cp *ControlPlane) runBackups(ctx context.Context) error {
	if cp.opts.Backup == nil {
		return nil
	}
	var last backup.Settings
	var due time.Time
	for lifecycle.Pause(ctx, backupLook) {
		settings, secret, err := cp.readSettings(ctx)
		if err != nil {
			cp.opts.Logger.Warn("the schedule of backups cannot be read", "error", err)
			continue
		}
		if settings.Schedule == "" {
			last = settings
			continue
		}
		status, err := cp.readBackupStatus(ctx)
		if err != nil {
			continue
		}
		if !status.Tried.IsZero() || due.IsZero() || !reflect.DeepEqual(settings, last) {
			if due, err = nextBackup(&settings, &status, time.Now()); err != nil {
				continue // Check let nobody write it
			}
		}
		last = settings
		if time.Now().Before(due) {
			continue
		}
		cp.scheduledBackup(ctx, settings, status, secret)
	}
	return nil
}

// scheduledBackup makes one backup, removes what is too old and writes down what became of it.
func (cp *ControlPlane) scheduledBackup(ctx context.Context, settings backup.Settings, status backup.Status, secret *corev1.Secret) {
	status.Tried = time.Now().UTC().Truncate(time.Second)
	item, err := cp.backUpTo(ctx, settings)
	recorder := cp.Events(events.Source{Component: "gantry-backup"})
	if err != nil {
		if ctx.Err() != nil {
			return // another server takes it up
		}
		status.Failed = err.Error()
		cp.opts.Logger.Error("the scheduled backup failed", "place", settings.Place, "error", err)
		recorder.Event(secret, corev1.EventTypeWarning, "BackupFailed", status.Failed)
	} else {
		status.Failed, status.Done, status.Name, status.Bytes = "", time.Now().UTC().Truncate(time.Second), item.Name, item.Bytes
		cp.opts.Logger.Info("backup made", "place", settings.Place, "name", item.Name, "bytes", item.Bytes)
		recorder.Event(secret, corev1.EventTypeNormal, "BackupMade", "made "+item.Name)
	}
	if err := cp.writeBackupStatus(ctx, status); err != nil && ctx.Err() == nil {
		cp.opts.Logger.Warn("the status of backups is not written", "error", err)
	}
}

func (cp *ControlPlane) writeBackupStatus(ctx context.Context, status backup.Status) error {
	text, err := json.Marshal(status)
	if err != nil {
		return fmt.Errorf("writing the status of backups: %w", err)
	}
	object := &corev1.ConfigMap{}
	err = cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: v1alpha1.PlatformNamespace, Name: backupObject}, object)
	if apierrors.IsNotFound(err) {
		object = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.PlatformNamespace, Name: backupObject}}
		object.Data = map[string]string{backupStatus: string(text)}
		return cp.admin.Create(ctx, object)
	}
	if err != nil {
		return fmt.Errorf("writing the status of backups: %w", err)
	}
	object = object.DeepCopy()
	object.Data = map[string]string{backupStatus: string(text)}
	return cp.admin.Update(ctx, object)
}

// backUpTo makes a backup at the place of the settings and removes those that are too many there.
func (cp *ControlPlane) backUpTo(ctx context.Context, settings backup.Settings) (backup.Item, error) {
	cluster, err := cp.clusterUID(ctx)
	if err != nil {
		return backup.Item{}, err
	}
	place, err := settings.Open()
	if err != nil {
		return backup.Item{}, err
	}
	item := backup.Item{Taken: time.Now().UTC()}
	item.Name = backup.Name(cluster, item.Taken)
	upload, err := place.Create(ctx, item.Name)
	if err != nil {
		return item, err
	}
	count := &countingWriter{to: upload}
	if _, err := cp.backUp(ctx, count, settings.Public, settings.Volumes); err != nil {
		upload.Abort()
		return item, err
	}
	if err := upload.Commit(); err != nil {
		upload.Abort()
		return item, err
	}
	item.Bytes = count.bytes
	all, err := place.List(ctx)
	if err != nil {
		return item, err
	}
	keep := settings.Keep
	if keep == 0 {
		keep = backup.DefaultKeep
	}
	var errs []error
	for _, old := range backup.Surplus(all, cluster, keep) {
		errs = append(errs, place.Remove(ctx, old.Name))
	}
	return item, errors.Join(errs...)
}

type countingWriter struct {
	to    io.Writer
	bytes int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.bytes += int64(n)
	return n, err //nolint:wrapcheck // it only counts
}
