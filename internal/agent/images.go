package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/gantry/internal/container"
)

// lookAgain is how long a failed pull shows as such before it shows as back-off.
const lookAgain = 2 * time.Second

// imageFailure is why a container has no image, in the API's words, and when to try again.
type imageFailure struct {
	reason, message string
	wait            time.Duration
}

// puller gets images, with a back-off for each pod and image.
type puller struct {
	agent *Agent
	slots *semaphore.Weighted

	mu      sync.Mutex // guards the fields below
	backoff map[pullKey]pullBackoff
	pulling map[string]*pull // pulls under way, by image and credentials: joined, not repeated
}

type pullKey struct {
	pod   types.UID
	image string
}

type pullBackoff struct {
	delay   time.Duration
	until   time.Time
	message string
}

type pull struct {
	done  chan struct{}
	image container.Image
	took  time.Duration
	err   error
}

func newPuller(a *Agent) *puller {
	return &puller{
		agent: a, slots: semaphore.NewWeighted(int64(a.opts.ParallelPulls)),
		backoff: map[pullKey]pullBackoff{}, pulling: map[string]*pull{},
	}
}

// warm begins what the first containers will need while the sandbox is being made.
func (p *puller) warm(ctx context.Context, pod *corev1.Pod) {
	list := pod.Spec.Containers
	if len(pod.Spec.InitContainers) > 0 {
		list = pod.Spec.InitContainers[:1]
	}
	for i := range list {
		c := &list[i]
		if c.ImagePullPolicy == corev1.PullAlways || c.ImagePullPolicy == corev1.PullNever {
			continue
		}
		if ref, err := normalizeImage(c.Image); err == nil {
			// The answer is not used: an image that is there is now in the store's memory.
			_, _ = p.agent.images.Image(ctx, ref)
		}
	}
}

// ensure returns the image of a container, pulled if its policy says so.
func (p *puller) ensure(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (container.Image, *imageFailure) {
	a := p.agent
	ref, err := normalizeImage(c.Image)
	if err != nil {
		message := fmt.Sprintf("Failed to apply default image tag %q: %v", c.Image, err)
		a.events.container(pod, c, corev1.EventTypeWarning, "InspectFailed", message)
		return container.Image{}, &imageFailure{"InvalidImageName", message, retryAfter}
	}
	denied := p.denied(ctx, pod, ref)
	if c.ImagePullPolicy != corev1.PullAlways && (denied == nil || c.ImagePullPolicy == corev1.PullNever) {
		image, err := a.images.Image(ctx, ref)
		if denied != nil { // an image that is here is not for everyone
			message := fmt.Sprintf("Container image %q is not present with pull policy of Never: %v", c.Image, denied)
			a.events.container(pod, c, corev1.EventTypeWarning, "ErrImageNeverPull", message)
			return container.Image{}, &imageFailure{"ErrImageNeverPull", message, retryAfter}
		}
		switch {
		case err == nil:
			a.events.container(pod, c, corev1.EventTypeNormal, "Pulled",
				fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", c.Image))
			return image, nil
		case !a.opts.IsNotFound(err):
			message := fmt.Sprintf("Failed to inspect image %q: %v", c.Image, err)
			a.events.container(pod, c, corev1.EventTypeWarning, "InspectFailed", message)
			return container.Image{}, &imageFailure{"ImageInspectError", message, retryAfter}
		case c.ImagePullPolicy == corev1.PullNever:
			message := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
			a.events.container(pod, c, corev1.EventTypeWarning, "ErrImageNeverPull", message)
			return container.Image{}, &imageFailure{"ErrImageNeverPull", message, retryAfter}
		}
	}
	return p.pull(ctx, pod, c, ref, denied)
}

// denied says why a pod may not use an image, whether it is here or not.
func (p *puller) denied(ctx context.Context, pod *corev1.Pod, ref string) error {
	if p.agent.opts.ImageAccess == nil {
		return nil
	}
	return p.agent.opts.ImageAccess(ctx, pod, ref, func() ([]container.Credentials, error) { return p.credentials(ctx, pod, ref) })
}

// pull gets an image from its registry. denied is why the pod may not have it; then it fails as if the registry had said so.
func (p *puller) pull(ctx context.Context, pod *corev1.Pod, c *corev1.Container, ref string, denied error) (container.Image, *imageFailure) {
	a, key := p.agent, pullKey{pod.UID, c.Image}
	p.mu.Lock()
	b := p.backoff[key]
	p.mu.Unlock()
	if left := time.Until(b.until); left > 0 {
		message := fmt.Sprintf("Back-off pulling image %q", c.Image)
		a.events.container(pod, c, corev1.EventTypeNormal, "BackOff", message)
		return container.Image{}, &imageFailure{"ImagePullBackOff", message + ": " + b.message, left}
	}
	a.events.container(pod, c, corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.Image))
	start := time.Now()
	done := &pull{err: denied}
	if denied == nil {
		done = p.join(ctx, pod, ref)
	}
	if ctx.Err() != nil {
		return container.Image{}, &imageFailure{"ErrImagePull", ctx.Err().Error(), retryAfter}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if done.err != nil {
		a.events.container(pod, c, corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", c.Image, done.err))
		b.delay = min(max(2*b.delay, firstBackoff), maxBackoff)
		b.until, b.message = time.Now().Add(b.delay), fmt.Sprintf("ErrImagePull: %v", done.err)
		p.backoff[key] = b
		// Looked at again soon, the failure shows as ErrImagePull first, then as back-off.
		return container.Image{}, &imageFailure{"ErrImagePull", done.err.Error(), lookAgain}
	}
	delete(p.backoff, key)
	a.events.container(pod, c, corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.",
		c.Image, done.took.Truncate(time.Millisecond), time.Since(start).Truncate(time.Millisecond), done.image.SizeBytes))
	return done.image, nil
}

// join pulls, or waits for the same pull that another pod has begun.
func (p *puller) join(ctx context.Context, pod *corev1.Pod, ref string) *pull {
	credentials, err := p.credentials(ctx, pod, ref)
	if err != nil {
		return &pull{err: err}
	}
	key := fmt.Sprint(ref, credentials)
	p.mu.Lock()
	if other := p.pulling[key]; other != nil {
		p.mu.Unlock()
		select {
		case <-other.done:
			if errors.Is(other.err, context.Canceled) && ctx.Err() == nil {
				return p.join(ctx, pod, ref) // the pod that pulled was deleted
			}
		case <-ctx.Done():
			return &pull{err: ctx.Err()}
		}
		return other
	}
	mine := &pull{done: make(chan struct{})}
	p.pulling[key] = mine
	p.mu.Unlock()
	if mine.err = p.slots.Acquire(ctx, 1); mine.err == nil {
		start := time.Now()
		mine.image, mine.err = p.agent.images.Pull(ctx, ref, credentials)
		mine.took = time.Since(start)
		p.slots.Release(1)
	}
	p.mu.Lock()
	delete(p.pulling, key)
	p.mu.Unlock()
	close(mine.done)
	return mine
}

// forget drops the back-offs of a pod.
func (p *puller) forget(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.backoff {
		if key.pod == uid {
			delete(p.backoff, key)
		}
	}
}

// normalizeImage completes a reference as the kubelet does: a registry, and a tag.
func normalizeImage(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("couldn't parse image name %q: %v", image, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// credentials collects what the pod's pull secrets hold for an image, in their order. The
// service account's secrets are in the pod's list already: admission puts them there.
func (p *puller) credentials(ctx context.Context, pod *corev1.Pod, ref string) ([]container.Credentials, error) {
	var found []container.Credentials
	for _, s := range pod.Spec.ImagePullSecrets {
		secret, err := p.agent.secret(ctx, pod.Namespace, s.Name)
		if err != nil {
			// The kubelet pulls without it: the image may be public.
			p.agent.events.pod(pod, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", s.Name))
			continue
		}
		list, err := credentialsFor(secret, ref)
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	return found, nil
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentialsFor reads a docker configuration from a Secret; the longest matching entry first.
func credentialsFor(secret *corev1.Secret, ref string) ([]container.Credentials, error) {
	var file struct {
		Auths map[string]dockerAuth `json:"auths"`
	}
	switch secret.Type {
	case corev1.SecretTypeDockerConfigJson:
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigJsonKey], &file); err != nil {
			return nil, errors.New("unable to decode the pull secret's configuration")
		}
	case corev1.SecretTypeDockercfg:
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigKey], &file.Auths); err != nil {
			return nil, errors.New("unable to decode the pull secret's configuration")
		}
	}
	var best container.Credentials
	length := -1
	for registry, auth := range file.Auths {
		if n := matches(registry, ref); n > length {
			length, best = n, auth.credentials()
		}
	}
	if length < 0 {
		return nil, nil
	}
	return []container.Credentials{best}, nil
}

func (d dockerAuth) credentials() container.Credentials {
	c := container.Credentials{Username: d.Username, Password: d.Password, Token: d.IdentityToken}
	if c.Token == "" {
		c.Token = d.RegistryToken
	}
	if raw, err := base64.StdEncoding.DecodeString(d.Auth); err == nil && c.Username == "" {
		c.Username, c.Password, _ = strings.Cut(strings.TrimSpace(string(raw)), ":")
	}
	return c
}

// matches reports how specific an entry of a docker configuration is for an image; -1 is no match.
func matches(registry, ref string) int {
	registry = strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://")
	registry = strings.TrimSuffix(registry, "/")
	host, prefix, _ := strings.Cut(registry, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if prefix == "v1" || prefix == "v2" {
		prefix = ""
	}
	refHost, refPath, _ := strings.Cut(ref, "/")
	if ok, err := path.Match(host, refHost); !ok || err != nil || strings.Count(host, ".") != strings.Count(refHost, ".") {
		return -1
	}
	if prefix != "" && refPath != prefix && !strings.HasPrefix(refPath, prefix+"/") {
		return -1
	}
	return len(prefix)
}

// looksNotFound recognizes a missing image by what errors of runtimes say.
func looksNotFound(err error) bool {
	return err != nil && strings.Contains(err.Error(), "not found")
}
