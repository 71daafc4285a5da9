package git

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/build/language"
	"gantry.dev/gantry/internal/platform/deploy"
	"gantry.dev/gantry/internal/platform/source"
)

// AnnotationBranch on an App names the branch whose pushes are deployed; without it that is DefaultBranch.
const (
	AnnotationBranch = "gantry.dev/git-branch"
	DefaultBranch    = "main"
)

// errSaid is a reason that the pusher has read already.
var errSaid = errors.New("deploy failed")

// refusal is a reason with a short form for git's own line.
type refusal struct{ short, message string }

func (r *refusal) Error() string { return r.message }

func refuse(short, format string, args ...any) error {
	return &refusal{short, fmt.Sprintf(format, args...)}
}

// push is one push on its way.
type push struct {
	handler    *Handler
	repository *repository
	target     Target
	who        Pusher
	request    *packp.ReferenceUpdateRequest
	say        func(format string, args ...any)
}

func (p *push) key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.target.Project, Name: p.target.App}
}

// run does the whole. Without an error the branch is what was pushed, and that serves.
func (p *push) run(ctx context.Context) error {
	app, err := p.who.Cluster.App(ctx, p.key())
	if err != nil && !deploy.IsNoApp(err) {
		return err
	}
	command, err := p.command(app)
	if err != nil {
		return err
	}
	release, err := p.handler.acquire(ctx, p.repository.dir, func() { p.say("another push to %s is on its way; waiting for its end", p.target.App) })
	if err != nil {
		return err
	}
	defer release()
	heads, err := p.repository.heads()
	if err != nil {
		return err
	}
	if heads[command.Name.String()] != command.Old {
		return refuse("another push was first", "another push changed %s meanwhile: look at it, then push again", command.Name.Short())
	}
	dir, err := p.repository.incoming()
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := p.unpack(dir); err != nil {
		return err
	}
	if err := p.deploy(ctx, dir, command, app); err != nil {
		return err
	}
	if err := p.repository.keep(dir); err != nil {
		return err
	}
	return p.repository.setHead(command.Name.String(), command.New)
}

// command is the one branch that a push may change.
func (p *push) command(app *v1alpha1.App) (*packp.Command, error) {
	branch := DefaultBranch
	if app != nil && app.Annotations[AnnotationBranch] != "" {
		branch = app.Annotations[AnnotationBranch]
	}
	for _, command := range p.request.Commands {
		if command.Name != plumbing.NewBranchReferenceName(branch) || strings.Contains(branch, "/") {
			return nil, refuse("not deployed", "only the branch %s is deployed, not %s: git push gantry HEAD:%s", branch, command.Name.Short(), branch)
		}
		if command.New == plumbing.ZeroHash {
			return nil, refuse("cannot be removed", "the branch stays; gantry app rm %s ends the application", p.target.App)
		}
	}
	if len(p.request.Commands) != 1 {
		return nil, refuse("one branch at a time", "a push changes one branch")
	}
	return p.request.Commands[0], nil
}

// unpack writes what was pushed into its folder.
func (p *push) unpack(dir string) error {
	size, err := p.repository.size()
	if err != nil {
		return err
	}
	quota := p.handler.opts.MaxBytes
	if p.request.Packfile == nil {
		return nil
	}
	err = unpack(dir, p.request.Packfile, quota-size)
	if errors.Is(err, errTooLarge) {
		return refuse("too large", "the repository would be larger than %d MB; keep large files elsewhere", quota>>20)
	}
	return err
}

// deploy checks the commit out and brings it to the end of its release.
func (p *push) deploy(ctx context.Context, dir string, command *packp.Command, app *v1alpha1.App) error {
	above, below := storageOf(dir), storageOf(p.repository.dir)
	defer func() { _, _ = above.Close(), below.Close() }()
	commit, err := object.GetCommit(layers{above, below}, command.New)
	if err != nil {
		return refuse("no commit", "%s is not a commit that was pushed: %v", command.New, err)
	}
	tree, err := p.checkout(ctx, dir, commit)
	if err != nil {
		return err
	}
	request, err := p.deployRequest(tree, app)
	if err != nil {
		return err
	}
	engine, err := deploy.New(deploy.Options{Cluster: p.who.Cluster, Sink: p.show})
	if err != nil {
		return err
	}
	result, err := engine.Deploy(ctx, request)
	if err != nil {
		p.say("%s", err)
		return errSaid
	}
	if result.Unchanged {
		p.say("v%d: nothing changed", result.Release)
	} else {
		p.say("%s v%d serves", result.App, result.Release)
	}
	for _, url := range result.URLs {
		p.say("  %s", url)
	}
	return nil
}

func (p *push) checkout(ctx context.Context, dir string, commit *object.Commit) (*source.Tree, error) {
	folder := filepath.Join(dir, "tree")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for the commit: %w", err)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("open the folder for the commit: %w", err)
	}
	defer func() { _ = root.Close() }()
	tree := &source.Tree{Folder: folder, Commit: commit.Hash.String(), Time: commit.Committer.When.UTC()}
	c := &checkout{root: root, tree: tree, maxBytes: p.handler.opts.MaxTree, maxFiles: p.handler.opts.MaxFiles}
	if err := c.run(ctx, commit); err != nil {
		return nil, err
	}
	for _, note := range tree.Notes {
		p.say("! %s", note)
	}
	return tree, nil
}

// deployRequest reads gantry.yaml and looks what is to be built, as `gantry deploy` does in a folder.
func (p *push) deployRequest(tree *source.Tree, app *v1alpha1.App) (deploy.Request, error) {
	file, err := appfile.Load(tree.Folder, "")
	known := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		file, err = &appfile.File{}, nil
	}
	if err != nil {
		text := strings.ReplaceAll(err.Error(), tree.Folder+string(filepath.Separator), "")
		return deploy.Request{}, refuse("gantry.yaml is wrong", "%s", text)
	}
	tree.Origin = "git push to " + p.target.Project + "/" + p.target.App
	if app != nil && app.Spec.Source != nil && app.Spec.Source.Origin != "" {
		tree.Origin = app.Spec.Source.Origin // who may push to this application says that it is the same one
	}
	request := deploy.Request{Project: p.target.Project, App: p.target.App, Spec: file.Spec, Timeout: p.handler.opts.Timeout}
	request.Spec.Source = &v1alpha1.Source{Origin: tree.Origin, Commit: tree.Commit, Lines: file.Lines, Reason: "git push", By: p.who.Name}
	if known {
		request.Spec.Source.File = appfile.FileName
	}
	if request.Spec.Image != "" || (request.Spec.Build != nil && request.Spec.Build.Git != nil) {
		return request, nil
	}
	inside, dockerfile := ".", ""
	if b := request.Spec.Build; b != nil {
		dockerfile = b.Dockerfile
		if b.Path != "" {
			inside = filepath.ToSlash(filepath.Clean(b.Path))
		}
	}
	part, err := fs.Sub(tree.FS(), inside)
	if err != nil {
		return request, refuse("gantry.yaml is wrong", "build.path: %v", err)
	}
	found, err := language.Detect(part, language.Options{Dockerfile: dockerfile})
	if err != nil {
		return request, refuse("nothing to build", "%v", err)
	}
	p.say("- %s", found.Why)
	request.Tree, request.Kind = tree, found.Kind
	if found.Main != "." {
		request.Main = found.Main
	}
	deploy.AddProcesses(&request.Spec, found.Processes)
	return request, nil
}

// show tells the pusher what the deploy does.
func (p *push) show(e deploy.Event) {
	switch e.Type {
	case deploy.EventStep, deploy.EventRelease:
		p.say("- %s", e.Text)
	case deploy.EventDone:
		p.say("✓ %s", e.Text)
	case deploy.EventWarning:
		p.say("! %s", e.Text)
	case deploy.EventLog:
		p.say("  | %s", e.Text)
	}
}
