package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// httpSolver answers http-01 through the gateway: it writes the answer into a Secret, of which every
// node's feeder makes the gateway's table.
type httpSolver struct{ c *Controller }

// Present implements acmez.Solver.
func (s *httpSolver) Present(ctx context.Context, challenge acme.Challenge) error {
	if err := s.c.setChallenge(ctx, challenge.Token, []byte(challenge.KeyAuthorization)); err != nil {
		return fmt.Errorf("publishing the answer to a challenge: %w", err)
	}
	if s.c.opts.ACME.Gateway == "" {
		return nil
	}
	return s.c.seen(ctx, challenge, s.c.opts.ACME.Gateway, s.served)
}

// CleanUp implements acmez.Solver.
func (s *httpSolver) CleanUp(ctx context.Context, challenge acme.Challenge) error {
	return s.c.setChallenge(context.WithoutCancel(ctx), challenge.Token, nil)
}

// served reports whether the gateway at an address answers a challenge.
func (s *httpSolver) served(ctx context.Context, challenge acme.Challenge, at string) error {
	host := challenge.Identifier.Value
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
		host = "[" + host + "]"
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at)
	}, DisableKeepAlives: true}
	return fetch(ctx, transport, "http://"+host+challenge.HTTP01ResourcePath(), challenge.KeyAuthorization)
}

// tlsSolver answers tls-alpn-01 (RFC 8737): the certificate that the authority wants to see goes the same way.
type tlsSolver struct{ c *Controller }

// Present implements acmez.Solver.
func (s *tlsSolver) Present(ctx context.Context, challenge acme.Challenge) error {
	made, err := acmez.TLSALPN01ChallengeCert(challenge)
	if err != nil {
		return fmt.Errorf("making the answer to a challenge: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	if err != nil {
		return fmt.Errorf("making the answer to a challenge: %w", err)
	}
	answer := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made.Certificate[0]})
	answer = append(answer, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := s.c.setChallenge(ctx, s.name(challenge), answer); err != nil {
		return fmt.Errorf("publishing the answer to a challenge: %w", err)
	}
	return s.c.seen(ctx, challenge, s.c.opts.ACME.GatewayTLS, s.served)
}

// CleanUp implements acmez.Solver.
func (s *tlsSolver) CleanUp(ctx context.Context, challenge acme.Challenge) error {
	return s.c.setChallenge(context.WithoutCancel(ctx), s.name(challenge), nil)
}

func (s *tlsSolver) name(challenge acme.Challenge) string {
	return compile.TLSChallengePrefix + handshakeName(challenge.Identifier.Value)
}

// served reports whether the gateway at an address shows the certificate.
func (s *tlsSolver) served(ctx context.Context, challenge acme.Challenge, at string) error {
	dialer := &tls.Dialer{Config: &tls.Config{
		ServerName: handshakeName(challenge.Identifier.Value), NextProtos: []string{acmez.ACMETLS1Protocol},
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, // what it has to prove is in the certificate
	}}
	conn, err := dialer.DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	sum := sha256.Sum256([]byte(challenge.KeyAuthorization))
	want, err := asn1.Marshal(sum[:])
	if err != nil {
		return err
	}
	if client, ok := conn.(*tls.Conn); ok {
		for _, leaf := range client.ConnectionState().PeerCertificates {
			for _, extension := range leaf.Extensions {
				if bytes.Equal(extension.Value, want) {
					return nil
				}
			}
		}
	}
	return errors.New("it shows another certificate")
}

// handshakeName is by which name an authority asks for a host: of an address, that of its reverse lookup (RFC 8738).
func handshakeName(host string) string {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return strings.ToLower(host)
	}
	addr = addr.Unmap()
	raw, labels, zone := addr.AsSlice(), []string(nil), "in-addr.arpa"
	for _, b := range raw {
		if addr.Is4() {
			labels = append(labels, strconv.Itoa(int(b)))
		} else {
			labels = append(labels, strconv.FormatUint(uint64(b>>4), 16), strconv.FormatUint(uint64(b&15), 16))
		}
	}
	if addr.Is6() {
		zone = "ip6.arpa"
	}
	slices.Reverse(labels)
	return strings.Join(append(labels, zone), ".")
}

// setChallenge adds an answer, or removes it.
func (c *Controller) setChallenge(ctx context.Context, token string, answer []byte) error {
	key := client.ObjectKey{Namespace: compile.Namespace, Name: compile.ChallengeSecret}
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		there := &corev1.Secret{}
		err := c.client.Get(ctx, key, there)
		if apierrors.IsNotFound(err) {
			if answer == nil {
				return nil
			}
			return c.client.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
				Data: map[string][]byte{token: answer}})
		}
		if err != nil {
			return err
		}
		next := there.DeepCopy()
		if next.Data == nil {
			next.Data = map[string][]byte{}
		}
		next.Data[token] = answer
		if answer == nil {
			delete(next.Data, token)
		}
		return c.client.Update(ctx, next)
	})
}

// seen waits until this machine's gateway serves a challenge.
func (c *Controller) seen(ctx context.Context, challenge acme.Challenge, at string, served func(context.Context, acme.Challenge, string) error) error {
	ctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	for {
		err := served(ctx, challenge, at)
		if err == nil {
			return nil
		}
		if !lifecycle.Pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("this machine's gateway does not serve the challenge at %s: %w", at, err)
		}
	}
}

func fetch(ctx context.Context, transport http.RoundTripper, url, want string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || string(body) != want {
		return fmt.Errorf("it answers %s", response.Status)
	}
	return nil
}
