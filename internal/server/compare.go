package server

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/events"
	"gantry.dev/gantry/internal/store"
)

const (
	// compareFirst and compareEvery are when the leader compares what the members of the store hold.
	compareFirst = 2 * time.Minute
	compareEvery = 30 * time.Minute
	// calmFor is how long nothing may have been written before, calmWait how long that is waited for.
	calmFor  = time.Second
	calmWait = 5 * time.Minute
)

// storeDiffers is the condition of a Node whose server holds other data than most.
const storeDiffers corev1.NodeConditionType = "StoreDiffers"

// compareMembers has the members of the store compared now and then, when it is calm, and says on their Nodes who differs. The
// cluster goes on: whether a server is taken away is for people to decide.
func (t *term) compareMembers(ctx context.Context) error {
	recorder := t.Events(events.Source{Component: "gantry-store"})
	for wait := compareFirst; ; wait = compareEvery {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if !t.store.HasCompany() {
			continue
		}
		awaitCalm(ctx, t.store.Revision)
		got, err := t.store.Compare(ctx)
		if err == nil {
			err = t.sayDifferences(ctx, got, recorder)
		}
		if err != nil && ctx.Err() == nil {
			t.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "comparing the members of the store", slog.Any("error", err))
		}
	}
}

// awaitCalm waits until nothing was written for a moment, but not for ever.
func awaitCalm(ctx context.Context, revision func() int64) {
	end := time.Now().Add(calmWait)
	for before := int64(-1); time.Now().Before(end); {
		now := revision()
		if now == before {
			return
		}
		before = now
		select {
		case <-ctx.Done():
			return
		case <-time.After(calmFor):
		}
	}
}

// sayDifferences writes what a comparison found: a line in the log, an event and a condition of each Node concerned.
func (t *term) sayDifferences(ctx context.Context, got store.Comparison, recorder *events.Recorder) error {
	if len(got.Differ) > 0 {
		t.opts.Logger.LogAttrs(ctx, slog.LevelError, "the members of the store hold different data",
			slog.Any("differ", got.Differ), slog.Any("same", got.Same), slog.Int64("revision", got.Revision))
	} else {
		t.opts.Logger.LogAttrs(ctx, slog.LevelDebug, "the members of the store hold the same data",
			slog.Any("same", got.Same), slog.Any("missed", got.Missed), slog.Int64("revision", got.Revision))
	}
	var nodes corev1.NodeList
	if err := t.admin.List(ctx, &nodes); err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	for i := range nodes.Items {
		next := planDiffers(&nodes.Items[i], got, metav1.Now())
		if next == nil {
			continue
		}
		if err := t.admin.Status().Patch(ctx, next, ctrlclient.MergeFrom(&nodes.Items[i])); err != nil {
			return fmt.Errorf("saying on node %s whether its store differs: %w", next.Name, err)
		}
		condition := next.Status.Conditions[slices.IndexFunc(next.Status.Conditions, isStoreDiffers)]
		if condition.Status == corev1.ConditionTrue {
			recorder.Event(next, corev1.EventTypeWarning, string(storeDiffers), condition.Message)
		}
	}
	return nil
}

func isStoreDiffers(c corev1.NodeCondition) bool { return c.Type == storeDiffers }

// planDiffers is the node with its condition as the comparison has it, nil when nothing changes. A node that never differed has none.
// It is pure.
func planDiffers(node *corev1.Node, got store.Comparison, now metav1.Time) *corev1.Node {
	at := slices.IndexFunc(node.Status.Conditions, isStoreDiffers)
	want := corev1.NodeCondition{Type: storeDiffers, LastHeartbeatTime: now, LastTransitionTime: now}
	switch {
	case slices.Contains(got.Differ, node.Name):
		want.Status, want.Reason = corev1.ConditionTrue, "OtherData"
		want.Message = fmt.Sprintf("at revision %d this server's store holds something else than those of %s: take the server out and let it join again",
			got.Revision, strings.Join(got.Same, " and "))
		if got.Unsure {
			want.Reason = "NoMajority"
			want.Message = fmt.Sprintf("at revision %d the stores of %s differ, and no majority says which is right: restore a backup, or keep one server and let the others join again",
				got.Revision, strings.Join(got.Differ, " and "))
		}
	case at >= 0 && slices.Contains(got.Same, node.Name):
		want.Status, want.Reason, want.Message = corev1.ConditionFalse, "SameData", "this server's store holds what the others hold"
	default:
		return nil
	}
	if at >= 0 && node.Status.Conditions[at].Status == want.Status {
		return nil
	}
	next := node.DeepCopy()
	if at >= 0 {
		next.Status.Conditions[at] = want
	} else {
		next.Status.Conditions = append(next.Status.Conditions, want)
	}
	return next
}
