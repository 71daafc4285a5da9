package aggregate

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/aggregator"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Schemas joins other servers' OpenAPI documents with this one's. What they say is fetched when somebody asks, and
// kept for as long as Options.Refresh says.
type Schemas struct {
	from *Aggregator

	mu      sync.Mutex // guards the fields below
	indexed map[schema.GroupVersion]fetched[string]
	merged  fetched[[]byte]
	over    string // what merged was made of: the local document's hash and the table's versions
}

// fetched is a document and when it was.
type fetched[T any] struct {
	value T
	at    time.Time
	of    *Target
}

// NewSchemas returns the documents of a's servers.
func NewSchemas(a *Aggregator) *Schemas {
	return &Schemas{from: a, indexed: map[schema.GroupVersion]fetched[string]{}}
}

func (s *Schemas) fresh(at time.Time) bool {
	return time.Since(at) < s.from.opts.Refresh
}

// V3URLs returns where the OpenAPI v3 document of each group version of other servers is, by its name in the index
// ("apis/group/version"). Servers that do not answer are left out.
func (s *Schemas) V3URLs(ctx context.Context) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	targets := s.from.table.Load().targets
	for gv := range s.indexed {
		if targets[gv] == nil {
			delete(s.indexed, gv)
		}
	}
	for gv, target := range targets {
		known := s.indexed[gv]
		if known.of != target || !s.fresh(known.at) {
			url, err := target.v3URL(ctx)
			if err != nil {
				s.from.opts.Log.LogAttrs(ctx, slog.LevelDebug, "fetching OpenAPI", slog.String("apiService", target.name), slog.Any("error", err))
			}
			known = fetched[string]{url, time.Now(), target}
			s.indexed[gv] = known
		}
		if known.value != "" {
			out["apis/"+gv.String()] = known.value
		}
	}
	return out
}

// v3URL asks the target's index; "" if it does not list the group version.
func (t *Target) v3URL(ctx context.Context) (string, error) {
	if !t.available {
		return "", nil
	}
	data, _, err := t.Fetch(ctx, "/openapi/v3", "application/json")
	if err != nil {
		return "", err
	}
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return "", fmt.Errorf("reading the OpenAPI index: %w", err)
	}
	url := index.Paths["apis/"+t.spec.Group+"/"+t.spec.Version].URL
	if !strings.HasPrefix(url, "/openapi/v3/") { // it must not lead elsewhere
		return "", nil
	}
	return url, nil
}

// MergeV2 returns the Swagger document local, whose hash is given, with the paths and definitions of other servers.
func (s *Schemas) MergeV2(ctx context.Context, local []byte, hash string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	targets := s.from.table.Load().targets
	names := make([]string, 0, len(targets))
	for gv, target := range targets {
		names = append(names, fmt.Sprintf("%s=%t", gv, target.available))
	}
	slices.Sort(names)
	over := hash + " " + strings.Join(names, " ")
	if s.over == over && s.fresh(s.merged.at) {
		return s.merged.value, nil
	}
	swagger := new(spec.Swagger)
	if err := json.Unmarshal(local, swagger); err != nil {
		return nil, fmt.Errorf("reading the OpenAPI document: %w", err)
	}
	for _, target := range targets {
		if err := target.addV2(ctx, swagger); err != nil {
			s.from.opts.Log.LogAttrs(ctx, slog.LevelDebug, "fetching OpenAPI", slog.String("apiService", target.name), slog.Any("error", err))
		}
	}
	data, err := json.Marshal(swagger)
	if err != nil {
		return nil, fmt.Errorf("encoding the OpenAPI document: %w", err)
	}
	s.over, s.merged = over, fetched[[]byte]{value: data, at: time.Now()}
	return data, nil
}

// addV2 adds what the target serves of its group version.
func (t *Target) addV2(ctx context.Context, to *spec.Swagger) error {
	if !t.available {
		return nil
	}
	data, _, err := t.Fetch(ctx, "/openapi/v2", "application/json")
	if err != nil {
		return err
	}
	own := new(spec.Swagger)
	if err := json.Unmarshal(data, own); err != nil {
		return fmt.Errorf("reading the OpenAPI document: %w", err)
	}
	own = aggregator.FilterSpecByPathsWithoutSideEffects(own, []string{"/apis/" + t.spec.Group + "/" + t.spec.Version + "/"})
	if err := aggregator.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(to, own); err != nil {
		return fmt.Errorf("merging the OpenAPI document: %w", err)
	}
	return nil
}
