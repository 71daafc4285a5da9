package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/durable"
)

// recoveryKeyVariable holds a recovery key. It is the command line's alone, as sshVariable is.
const recoveryKeyVariable = "GANTRY_RECOVERY_KEY"

func (a *app) backupCommand() *cobra.Command {
	cmd := parent("backup", "Make backups of the cluster, by hand or by a schedule, and try them out",
		a.backupCreateCommand(), a.backupListCommand(), a.backupScheduleCommand())
	if a.backend.Backups != nil {
		verify := a.backupVerifyCommand()
		verify.GroupID = ""
		cmd.AddCommand(verify)
	}
	cmd.GroupID = groupCluster
	return cmd
}

// backupAPI is where a cluster tells of its backups.
type backupAPI struct {
	client *http.Client
	url    string
}

func (a *app) backupAPI(cmd *cobra.Command, f *appFlags) (*backupAPI, error) {
	config, err := a.clusterOf(cmd, &appTarget{context: f.context})
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.Timeout = 0 // a backup takes as long as it takes
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", config.Host, err)
	}
	return &backupAPI{client, strings.TrimSuffix(config.Host, "/") + backup.Path}, nil
}

// do makes a request. The caller closes the body.
func (b *backupAPI) do(ctx context.Context, method, query string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, b.url+query, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", b.url, err)
	}
	answer, err := b.client.Do(request)
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("the cluster does not answer: %w; start it with \"gantry up\"", err))
	}
	if answer.StatusCode < 300 {
		return answer, nil
	}
	defer func() { _ = answer.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	return nil, errors.New(strings.TrimSpace(string(text)))
}

func (b *backupAPI) state(ctx context.Context) (state backup.State, err error) {
	answer, err := b.do(ctx, http.MethodGet, "", nil)
	if err != nil {
		return state, err
	}
	defer func() { _ = answer.Body.Close() }()
	if err := json.NewDecoder(answer.Body).Decode(&state); err != nil {
		return state, fmt.Errorf("read the answer: %w", err)
	}
	return state, nil
}

func (b *backupAPI) set(ctx context.Context, settings backup.Settings) error {
	body, err := json.Marshal(settings)
	if err != nil {
		return fmt.Errorf("write the settings: %w", err)
	}
	answer, err := b.do(ctx, http.MethodPut, "", body)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// clusterFlag adds the flag that says which cluster.
func clusterFlag(cmd *cobra.Command, f *appFlags) *cobra.Command {
	cmd.Flags().StringVar(&f.context, "context", "", "the cluster, one of \"gantry context ls\" (default: the current one)")
	return cmd
}

func (a *app) backupCreateCommand() *cobra.Command {
	f := &appFlags{}
	var volumes, newKey bool
	var keyFile string
	cmd := clusterFlag(&cobra.Command{
		Use: "create [FILE|DIR|s3://BUCKET/PREFIX]", Short: "Write a backup of the cluster", Args: atMostOne("FILE"),
		Long: "Write a backup of the cluster: its objects, its keys, the images in use of its registry, dumps of its addons. Only who has the recovery key\n" +
			"can read it. The first backup makes that key and shows it once: keep it where the cluster is not.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.backupAPI(cmd, f)
			if err != nil {
				return err
			}
			state, err := api.state(cmd.Context())
			if err != nil {
				return err
			}
			if state.Settings.Public == "" || newKey {
				if err := a.makeRecoveryKey(cmd.Context(), api, state.Settings, keyFile); err != nil {
					return err
				}
			}
			return a.backupCreate(cmd.Context(), api, state.Cluster, first(args), volumes)
		},
	}, f)
	cmd.Flags().BoolVar(&volumes, "volumes", false, "put the content of local volumes in, as it is while they are written to")
	cmd.Flags().BoolVar(&newKey, "new-key", false, "make a new recovery key: older backups still need the old one")
	cmd.Flags().StringVar(&keyFile, "recovery-key-file", "", "write a recovery key that is made to this file instead of showing it")
	return cmd
}

// makeRecoveryKey makes the key here: the cluster never has the half that reads backups.
func (a *app) makeRecoveryKey(ctx context.Context, api *backupAPI, settings backup.Settings, file string) error {
	key, err := backup.NewKey()
	if err != nil {
		return err
	}
	if file != "" {
		if _, err := os.Stat(file); err == nil {
			return usage("%s is there already", file)
		}
		if err := durable.WriteFile(file, []byte(key.Secret+"\n"), 0o600); err != nil {
			return err
		}
	}
	settings.Public = key.Public
	if err := api.set(ctx, settings); err != nil {
		return err
	}
	if file != "" {
		_, _ = fmt.Fprintf(a.env.Stderr, "the recovery key is in %s: keep it where the cluster is not\n", file)
		return nil
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "recovery key, shown this once; without it no backup can be read:\n\n  %s\n\nkeep it where the cluster is not\n\n", key.Secret)
	return nil
}

// backupUpload begins the file of a backup.
func (a *app) backupUpload(ctx context.Context, where, cluster string) (upload backup.Upload, path string, err error) {
	name := backup.Name(cluster, time.Now())
	if backup.IsRemote(where) {
		place, err := backup.Open(where, backup.CredentialsOf(a.getenv))
		if err != nil {
			return nil, "", usage("%w", err)
		}
		upload, err = place.Create(ctx, name)
		return upload, strings.TrimSuffix(where, "/") + "/" + name, err
	}
	if path, err = filepath.Abs(where); err != nil {
		return nil, "", usage("%w", err)
	}
	if info, err := os.Stat(path); where == "" || strings.HasSuffix(where, "/") || err == nil && info.IsDir() {
		path = filepath.Join(path, name)
	} else if err == nil {
		return nil, "", usage("%s is there already", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, "", usage("%w", err)
	}
	upload, err = backup.NewFile(path)
	return upload, path, err
}

// createdBackup is what "backup create --json" prints.
type createdBackup struct {
	File     string          `json:"file"`
	Bytes    int64           `json:"bytes"`
	Manifest backup.Manifest `json:"manifest"`
}

func (a *app) backupCreate(ctx context.Context, api *backupAPI, cluster, where string, volumes bool) error {
	upload, path, err := a.backupUpload(ctx, where, cluster)
	if err != nil {
		return err
	}
	query := ""
	if volumes {
		query = "?volumes=true"
	}
	done := createdBackup{File: path}
	done.Manifest, done.Bytes, err = a.download(ctx, api, query, upload)
	if err != nil {
		upload.Abort()
		return fmt.Errorf("there is no backup: %w", err)
	}
	if err := upload.Commit(); err != nil {
		upload.Abort()
		return err
	}
	if a.json {
		return a.printJSON(done)
	}
	if err := a.printf("%s, %s\n", path, sizeText(done.Bytes)); err != nil {
		return err
	}
	return a.printManifest(&done.Manifest)
}

// download writes a backup as it comes. Without its manifest behind it, it is none.
func (a *app) download(ctx context.Context, api *backupAPI, query string, to io.Writer) (m backup.Manifest, n int64, err error) {
	answer, err := api.do(ctx, http.MethodPost, query, nil)
	if err != nil {
		return m, 0, err
	}
	defer func() { _ = answer.Body.Close() }()
	progress := a.progressOf("backed up")
	n, err = io.Copy(progress.writer(to), answer.Body)
	progress.end()
	if err != nil {
		return m, n, fmt.Errorf("it ended too early: %w", err)
	}
	if message := answer.Trailer.Get(backup.TrailerError); message != "" {
		return m, n, errors.New(message)
	}
	text := answer.Trailer.Get(backup.TrailerManifest)
	if err := json.Unmarshal([]byte(text), &m); err != nil || text == "" {
		return m, n, errors.New("it ended too early")
	}
	return m, n, nil
}

func sizeText(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// printManifest says what is in a backup and what is not.
func (a *app) printManifest(m *backup.Manifest) error {
	rows := [][]string{
		{"in it", fmt.Sprintf("all objects as of revision %d, %d files of keys, %d images", m.Revision, len(m.Keys), len(m.Images))},
	}
	for _, d := range m.Dumps {
		rows = append(rows, []string{"in it", fmt.Sprintf("a dump of %s (%s) of %s/%s, %s", d.Addon, d.Type, d.Project, d.App, sizeText(d.Bytes))})
	}
	for _, v := range m.Volumes {
		rows = append(rows, []string{"in it", fmt.Sprintf("the volume of %s, %s", v.Claim, sizeText(v.Bytes))})
	}
	for _, missing := range m.Missing {
		rows = append(rows, []string{"not in it", missing})
	}
	return a.printTable(rows)
}

func (a *app) backupListCommand() *cobra.Command {
	f := &appFlags{}
	return clusterFlag(&cobra.Command{
		Use: "ls [DIR|s3://BUCKET/PREFIX]", Short: "List backups, the newest first (default: where the schedule puts them)", Args: atMostOne("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var items []backup.Item
			if where := first(args); where != "" {
				place, err := a.place(where)
				if err != nil {
					return err
				}
				if items, err = place.List(cmd.Context()); err != nil {
					return err
				}
			} else {
				api, err := a.backupAPI(cmd, f)
				if err != nil {
					return err
				}
				state, err := api.state(cmd.Context())
				if err != nil {
					return err
				}
				if state.Trouble != "" {
					return errors.New(state.Trouble)
				}
				if state.Settings.Place == "" {
					return usage("nothing is scheduled: say where, as in gantry backup ls /var/backups")
				}
				items = state.Items
			}
			if a.json {
				return a.printJSON(append([]backup.Item{}, items...))
			}
			rows := [][]string{{"BACKUP", "SIZE", "TAKEN"}}
			for _, item := range items {
				rows = append(rows, []string{item.Name, sizeText(item.Bytes), item.Taken.Format(time.RFC3339)})
			}
			return a.printTable(rows)
		},
	}, f)
}

// place opens a place of this machine's.
func (a *app) place(where string) (backup.Place, error) {
	if !backup.IsRemote(where) {
		path, err := filepath.Abs(where)
		if err != nil {
			return nil, usage("%w", err)
		}
		where = path
	}
	place, err := backup.Open(where, backup.CredentialsOf(a.getenv))
	if err != nil {
		return nil, usage("%w", err)
	}
	return place, nil
}

func (a *app) backupScheduleCommand() *cobra.Command {
	f := &appFlags{}
	var keep int
	var volumes bool
	cmd := clusterFlag(&cobra.Command{
		Use: "schedule [WHEN DIR|s3://BUCKET/PREFIX | off]", Short: "Say when backups are made and where to, or show it",
		Long: "Say when backups are made and where to, or show it. WHEN is hourly, daily, weekly or five fields of cron, in UTC. A directory is one of the server's.\n" +
			"For s3:// the environment has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL; the cluster keeps them.",
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.backupAPI(cmd, f)
			if err != nil {
				return err
			}
			state, err := api.state(cmd.Context())
			if err != nil || len(args) == 0 {
				if err == nil {
					err = a.printSchedule(&state)
				}
				return err
			}
			settings := state.Settings
			switch {
			case len(args) == 1 && args[0] == "off":
				settings.Schedule = ""
			case len(args) == 1:
				return usage("where to? gantry backup schedule %q DIR", args[0])
			default:
				settings.Schedule, settings.Place, settings.Keep, settings.Volumes = args[0], args[1], keep, volumes
				if backup.IsRemote(args[1]) {
					credentials := backup.CredentialsOf(a.getenv)
					settings.Credentials = &credentials
				}
				if err := settings.Check(); err != nil {
					return usage("%w", err)
				}
			}
			if err := api.set(cmd.Context(), settings); err != nil {
				return err
			}
			if state, err = api.state(cmd.Context()); err != nil {
				return err
			}
			return a.printSchedule(&state)
		},
	}, f)
	cmd.Flags().IntVar(&keep, "keep", backup.DefaultKeep, "how many backups stay")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "put the content of local volumes in")
	return cmd
}

func (a *app) printSchedule(state *backup.State) error {
	if a.json {
		return a.printJSON(state)
	}
	if state.Settings.Schedule == "" {
		return a.printf("no backups are scheduled\n")
	}
	rows := [][]string{
		{"schedule", state.Settings.Schedule + " (UTC)"}, {"place", state.Settings.Place}, {"keep", fmt.Sprint(state.Settings.Keep)},
		{"next", state.Next.Format(time.RFC3339)},
	}
	if !state.Status.Done.IsZero() {
		rows = append(rows, []string{"last", fmt.Sprintf("%s, %s, %s", state.Status.Done.Format(time.RFC3339), state.Status.Name, sizeText(state.Status.Bytes))})
	}
	if state.Status.Failed != "" {
		rows = append(rows, []string{"failed", fmt.Sprintf("%s: %s", state.Status.Tried.Format(time.RFC3339), state.Status.Failed)})
	}
	if state.Trouble != "" {
		rows = append(rows, []string{"trouble", state.Trouble})
	}
	return a.printTable(rows)
}
