package server

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"

	"gantry.dev/gantry/internal/heartbeat"
	"gantry.dev/gantry/internal/pki"
)

// maxBeat bounds the body of a heartbeat in bytes.
const maxBeat = 2 << 10

// withHeartbeats takes nodes' heartbeats before the API sees them: they are neither queued, counted nor written down.
func (cp *ControlPlane) withHeartbeats(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == heartbeat.Path {
			cp.serveHeartbeat(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Heartbeat takes a heartbeat of a node in this process.
func (cp *ControlPlane) Heartbeat(beat heartbeat.Beat) heartbeat.Answer {
	return cp.heartbeats.Beat(time.Now(), beat)
}

// others are the servers beside this one. Which of them leads they say themselves.
func (cp *ControlPlane) others(config func() *tls.Config) []heartbeat.Server {
	if cp.opts.Endpoint == nil || !cp.store.HasCompany() {
		return nil
	}
	var out []heartbeat.Server
	for _, m := range cp.store.Known() {
		if addr, ok := addressOf(m); ok && !m.Self {
			out = append(out, heartbeat.NewRemote(netip.AddrPortFrom(addr, cp.opts.Endpoint().Port()).String(), config))
		}
	}
	return out
}

func (cp *ControlPlane) serveHeartbeat(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		w.Header().Set("Allow", http.MethodPut)
		http.Error(w, "heartbeats are sent with PUT", http.StatusMethodNotAllowed)
		return
	}
	who, ok, err := cp.authn.AuthenticateRequest(r)
	if err != nil || !ok {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	var beat heartbeat.Beat
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBeat))
	if err == nil {
		err = json.Unmarshal(text, &beat)
	}
	if err == nil {
		err = beat.Check()
	}
	if err != nil {
		http.Error(w, "reading a heartbeat: "+err.Error(), http.StatusBadRequest)
		return
	}
	if who.User.GetName() != pki.NodeUserPrefix+beat.Name || !slices.Contains(who.User.GetGroups(), user.NodesGroup) {
		http.Error(w, "only a node itself may send its heartbeat", http.StatusForbidden)
		return
	}
	answer, err := json.Marshal(cp.Heartbeat(beat))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // a node that is gone does not read it
}
