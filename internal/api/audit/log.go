package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	upstream "k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/apiserver/plugin/pkg/audit/buffered"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"
	auditwebhook "k8s.io/apiserver/plugin/pkg/audit/webhook"
)

// Options says what is recorded and where. A policy and at least one place are required. The names
// are those of kube-apiserver's flags without "audit-".
type Options struct {
	PolicyFile string // an audit.k8s.io/v1 Policy

	LogPath      string // file of JSON lines; "-" is standard output
	LogMaxAge    int    // days that old files are kept, 0 for ever
	LogMaxBackup int    // old files kept, 0 all
	LogMaxSizeMB int    // megabytes at which the file is rotated, 0 never
	LogCompress  bool   // old files are compressed

	WebhookConfigFile     string        // a kubeconfig that names where batches are sent
	WebhookInitialBackoff time.Duration // wait before a failed batch is sent again; default 10s
	WebhookBatchMaxWait   time.Duration // longest wait before a batch that is not full is sent; default 30s
}

// What upstream batches for the webhook (apiserver, pkg/server/options/audit.go).
const (
	batchBuffer  = 10000
	batchEvents  = 400
	batchMaxWait = 30 * time.Second
	batchQPS     = 10
	batchBurst   = 15
)

// Log is the policy and the places. It is safe for concurrent use.
type Log struct {
	policy  upstream.PolicyRuleEvaluator
	backend upstream.Backend
	file    io.Closer // nil: nothing to close
}

// New checks opts, reads the policy and opens the log file. Nothing is sent before Run.
func New(opts Options) (*Log, error) {
	if opts.PolicyFile == "" {
		return nil, errors.New("audit: a log without a policy records nothing; set PolicyFile")
	}
	if opts.LogPath == "" && opts.WebhookConfigFile == "" {
		return nil, errors.New("audit: the policy has no place to record to; set LogPath or WebhookConfigFile")
	}
	if opts.LogMaxAge < 0 || opts.LogMaxBackup < 0 || opts.LogMaxSizeMB < 0 {
		return nil, errors.New("audit: Options have a negative limit")
	}
	read, err := policy.LoadPolicyFromFile(opts.PolicyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the audit policy: %w", err)
	}
	l := &Log{policy: policy.NewPolicyRuleEvaluator(read)}
	var backends []upstream.Backend
	if opts.LogPath != "" {
		out, closer, err := openLog(opts)
		if err != nil {
			return nil, fmt.Errorf("opening the audit log: %w", err)
		}
		l.file = closer
		backends = append(backends, tolerant{auditlog.NewBackend(out, auditlog.FormatJson, auditv1.SchemeGroupVersion)})
	}
	if opts.WebhookConfigFile != "" {
		sender, err := newWebhook(opts)
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		backends = append(backends, sender)
	}
	l.backend = upstream.Union(backends...)
	return l, nil
}

// Policy says what of a request is recorded.
func (l *Log) Policy() upstream.PolicyRuleEvaluator { return l.policy }

// Sink takes the records.
func (l *Log) Sink() upstream.Sink { return l.backend }

// Run sends until ctx ends and what was recorded before is written.
func (l *Log) Run(ctx context.Context) error {
	if err := l.backend.Run(ctx.Done()); err != nil {
		return errors.Join(fmt.Errorf("starting the audit log: %w", err), l.close())
	}
	<-ctx.Done()
	l.backend.Shutdown()
	return l.close()
}

func (l *Log) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// tolerant takes a record that could not be written for written: the request goes on, as with
// upstream's mode "blocking". Upstream's metrics count the failure.
type tolerant struct{ upstream.Backend }

// ProcessEvents implements upstream's Sink.
func (t tolerant) ProcessEvents(events ...*auditinternal.Event) bool {
	t.Backend.ProcessEvents(events...)
	return true
}

// openLog makes the file, which only its owner may read. closer is nil for standard output.
func openLog(opts Options) (out io.Writer, closer io.Closer, err error) {
	if opts.LogPath == "-" {
		return os.Stdout, nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(opts.LogPath), 0o700); err != nil {
		return nil, nil, err
	}
	file, err := os.OpenFile(opts.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if opts.LogMaxSizeMB == 0 {
		return file, file, nil
	}
	rotated := &lumberjack.Logger{
		Filename: opts.LogPath, MaxAge: opts.LogMaxAge, MaxBackups: opts.LogMaxBackup, MaxSize: opts.LogMaxSizeMB, Compress: opts.LogCompress,
	}
	return rotated, rotated, file.Close()
}

// newWebhook sends batches, as upstream's mode "batch" does.
func newWebhook(opts Options) (upstream.Backend, error) {
	backoff := webhook.DefaultRetryBackoffWithInitialDelay(cmp.Or(opts.WebhookInitialBackoff, auditwebhook.DefaultInitialBackoffDelay))
	sender, err := auditwebhook.NewBackend(opts.WebhookConfigFile, auditv1.SchemeGroupVersion, backoff, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the audit webhook's configuration: %w", err)
	}
	return buffered.NewBackend(sender, buffered.BatchConfig{
		BufferSize: batchBuffer, MaxBatchSize: batchEvents, MaxBatchWait: cmp.Or(opts.WebhookBatchMaxWait, batchMaxWait),
		ThrottleEnable: true, ThrottleQPS: batchQPS, ThrottleBurst: batchBurst, AsyncDelegate: true,
	}), nil
}
