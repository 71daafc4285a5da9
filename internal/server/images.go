package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/containerd"
)

// imageServer lets "gantry image" work on the images of the running node, over a socket that
// only root can open. Images are the machine's, not the cluster's: the API has no word for
// them.
type imageServer struct {
	runtime *containerd.Runtime
	cluster *ControlPlane                        // whose registry images are pushed to; nil on a worker, which has none
	builds  func(context.Context) (int64, error) // frees the cache of builds; nil: there is none
	socket  string
	logger  *slog.Logger
}

// Run serves until ctx ends.
func (s *imageServer) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.socket), 0o700); err != nil {
		return fmt.Errorf("making the socket's folder: %w", err)
	}
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing an old socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", s.socket)
	if err != nil {
		return fmt.Errorf("listening for image commands: %w", err)
	}
	if err := os.Chmod(s.socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("protecting the image socket: %w", err), listener.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /images", s.load)
	mux.HandleFunc("GET /images", s.list)
	mux.HandleFunc("DELETE /images", s.remove)
	if s.cluster != nil {
		mux.HandleFunc("POST /push", s.push)
		mux.HandleFunc("POST /prune", s.prune)
	} else {
		mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "this machine is a worker: the cluster's registry is on its servers", http.StatusUnprocessableEntity)
		})
	}
	return serveAll(ctx, mux, nil, []net.Listener{listener}, s.logger)
}

func (s *imageServer) load(w http.ResponseWriter, r *http.Request) {
	images, err := s.runtime.Import(r.Context(), r.Body, container.ImportOptions{})
	s.answer(w, images, err)
}

func (s *imageServer) list(w http.ResponseWriter, r *http.Request) {
	images, err := s.runtime.Images(r.Context())
	s.answer(w, images, err)
}

func (s *imageServer) remove(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	// The runtime removes what is not there without a word: who types a name wants to know.
	_, err := s.runtime.Image(r.Context(), name)
	if err == nil {
		err = s.runtime.RemoveImage(r.Context(), name)
	}
	s.answer(w, []container.Image{}, err)
}

func (s *imageServer) answer(w http.ResponseWriter, images []container.Image, err error) {
	switch {
	case errors.Is(err, containerd.ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	default:
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(images); err != nil {
			s.logger.Debug("answering an image command", "error", err)
		}
	}
}

// ImageClient speaks to the imageServer of a running node.
type ImageClient struct{ socket string }

// Images returns a client for the node whose socket this is.
func newImageClient(socket string) *ImageClient { return &ImageClient{socket} }

// Load imports an archive and returns the images it held.
func (c *ImageClient) Load(ctx context.Context, archive io.Reader) ([]container.Image, error) {
	return c.do(ctx, http.MethodPost, "", archive)
}

// List lists the node's images.
func (c *ImageClient) List(ctx context.Context) ([]container.Image, error) {
	return c.do(ctx, http.MethodGet, "", nil)
}

// Remove removes an image by one of its names or its ID.
func (c *ImageClient) Remove(ctx context.Context, name string) error {
	_, err := c.do(ctx, http.MethodDelete, "?name="+url.QueryEscape(name), nil)
	return err
}

func (c *ImageClient) do(ctx context.Context, method, query string, body io.Reader) ([]container.Image, error) {
	var images []container.Image
	err := c.ask(ctx, method, "/images"+query, body, &images)
	return images, err
}

// ask makes a request and decodes the answer.
func (c *ImageClient) ask(ctx context.Context, method, path string, body io.Reader, into any) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, body)
	if err != nil {
		return fmt.Errorf("making an image request: %w", err)
	}
	resp, err := transport.RoundTrip(req)
	if errors.Is(err, os.ErrNotExist) || isRefused(err) {
		return errors.New("no node runs here: start one with \"gantry up\"")
	}
	if err != nil {
		return fmt.Errorf("asking the node about images: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return errors.New(trimLine(text))
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("reading the node's answer: %w", err)
	}
	return nil
}
