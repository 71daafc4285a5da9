package plan

import (
	"context"
	"errors"
	"net"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/cli"
)

// Backend adds to the command line what this package answers.
func Backend(b cli.Backend) cli.Backend {
	b.Plan = func(ctx context.Context, run cli.PlanRequest) (cli.Answer, error) {
		result, err := Manifest(ctx, run.Documents, Options{Cluster: run.Cluster, Namespace: run.Project, Limit: run.Timeout, Progress: run.Progress})
		if err != nil {
			return cli.Answer{}, coded(err)
		}
		return cli.Answer{Document: result, Text: result.Text(), Warnings: result.Warnings()}, nil
	}
	b.WhyPod = func(ctx context.Context, cluster *rest.Config, project, name string) (cli.Answer, error) {
		answer, err := Pod(ctx, types.NamespacedName{Namespace: project, Name: name}, Options{Cluster: cluster})
		if err != nil {
			return cli.Answer{}, coded(err)
		}
		return cli.Answer{Document: answer, Text: answer.Text(), Warnings: answer.Warnings()}, nil
	}
	return b
}

// coded gives an error the exit code of what was wrong.
func coded(err error) error {
	var input *InputError
	var network net.Error
	switch {
	case errors.As(err, &input):
		return cli.WrongInput(err)
	case errors.As(err, &network), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return cli.Unreachable(err)
	}
	return err
}
