//go:build linux

package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"gantry.dev/gantry/internal/platform/build/job"
)

// The words of in-toto and SLSA (https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1).
const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "https://gantry.dev/build/v1"
	inTotoMedia   = "application/vnd.in-toto+json"
	builderID     = "https://gantry.dev/builder"
)

// material is something that an image was made of.
type material struct {
	URI    string
	Digest string // hex SHA-256
}

type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     predicate  `json:"predicate"`
}

type predicate struct {
	BuildDefinition struct {
		BuildType            string         `json:"buildType"`
		ExternalParameters   map[string]any `json:"externalParameters"`
		ResolvedDependencies []resource     `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
		Metadata struct {
			StartedOn  time.Time `json:"startedOn"`
			FinishedOn time.Time `json:"finishedOn"`
		} `json:"metadata"`
	} `json:"runDetails"`
}

// provenance says what the image was made of and how. Secrets are named, never shown.
func provenance(r job.Request, kind, sum string, bases []material, started time.Time) statement {
	out := statement{Type: statementType, PredicateType: predicateType}
	out.Subject = []resource{{Name: r.Repository, Digest: map[string]string{"sha256": strings.TrimPrefix(sum, "sha256:")}}}
	definition := &out.Predicate.BuildDefinition
	definition.BuildType = buildType
	definition.ExternalParameters = map[string]any{"kind": kind, "app": r.App, "sourceDateEpoch": epoch(r).Unix()}
	for key, value := range map[string]string{"path": r.Path, "dockerfile": r.File, "commit": r.Commit} {
		if value != "" {
			definition.ExternalParameters[key] = value
		}
	}
	if len(r.Args) > 0 {
		definition.ExternalParameters["args"] = r.Args
	}
	if len(r.Secrets) > 0 {
		definition.ExternalParameters["secrets"] = sortedKeys(r.Secrets)
	}
	from := resource{Name: "source", Digest: map[string]string{}}
	if r.Git != nil {
		from.URI = "git+" + r.Git.URL
		if r.Git.Ref != "" {
			from.URI += "@" + r.Git.Ref
		}
	} else {
		from.Digest["sha256"] = strings.TrimPrefix(r.Source, "sha256:")
	}
	definition.ResolvedDependencies = []resource{from}
	if r.Commit != "" {
		definition.ResolvedDependencies[0].Digest["gitCommit"] = strings.TrimSuffix(r.Commit, "+dirty")
	}
	for _, base := range bases {
		definition.ResolvedDependencies = append(definition.ResolvedDependencies, resource{URI: base.URI, Digest: map[string]string{"sha256": base.Digest}})
	}
	out.Predicate.RunDetails.Builder.ID = builderID
	if r.Builder != "" {
		out.Predicate.RunDetails.Builder.ID = r.Builder
	}
	out.Predicate.RunDetails.Metadata.StartedOn = started
	out.Predicate.RunDetails.Metadata.FinishedOn = time.Now().UTC()
	return out
}

// attach pushes a statement as a manifest that refers to the image (OCI image specification 1.1, subject), so that the
// image's own digest depends on its contents alone.
func (e *engine) attach(ctx context.Context, r job.Request, sum string, s statement) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding the provenance: %w", err)
	}
	repo, err := repository(r.Repository)
	if err != nil {
		return err
	}
	options := e.images.options(ctx)
	subject, err := remote.Head(repo.Digest(sum), options...)
	if err != nil {
		return fmt.Errorf("looking at the pushed image: %w", err)
	}
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: static.NewLayer(text, inTotoMedia), MediaType: inTotoMedia,
		Annotations: map[string]string{"in-toto.io/predicate-type": predicateType},
	})
	if err != nil {
		return fmt.Errorf("making the provenance: %w", err)
	}
	img = mutate.ConfigMediaType(img, inTotoMedia) // clients older than 1.1 take it for the kind of artifact
	attached, ok := mutate.Subject(img, *subject).(v1.Image)
	if !ok {
		return fmt.Errorf("making the provenance: %T is no image", attached)
	}
	digest, err := attached.Digest()
	if err != nil {
		return fmt.Errorf("making the provenance: %w", err)
	}
	if err := remote.Write(repo.Digest(digest.String()), attached, options...); err != nil {
		return fmt.Errorf("attaching the provenance: %w", err)
	}
	return nil
}

// push writes an image by digest.
func (e *engine) push(ctx context.Context, to string, img v1.Image) (string, error) {
	repo, err := repository(to)
	if err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("making the image: %w", err)
	}
	var target name.Reference = repo.Digest(digest.String())
	if err := remote.Write(target, img, e.images.options(ctx)...); err != nil {
		return "", fmt.Errorf("pushing the image: %w", err)
	}
	return digest.String(), nil
}

// blob is what a layer is made of.
func blob(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}
