package join

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	secretPrefix = "bootstrap-token-"
	groupsKey    = "auth-extra-groups"
	expiryKey    = "expiration"
)

// UnreachableError says that machines cannot join, because none of the servers has an address that they could reach.
type UnreachableError struct{ Addresses []string }

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("other machines cannot reach this cluster: its API is served at %s only; "+
		"start the server again with --node-ip ADDRESS (an address of this machine that the others reach), or with --listen 0.0.0.0:6443 on a machine that has one",
		strings.Join(e.Addresses, ", "))
}

// Created is a token and where it is good.
type Created struct {
	Token   Token
	Servers []string
	Expires time.Time
}

// CreateToken makes a token with which machines join in a role.
func CreateToken(ctx context.Context, c client.Client, role Role, ttl time.Duration) (Created, error) {
	var settings, info corev1.ConfigMap
	if err := c.Get(ctx, client.ObjectKey{Namespace: SettingsNamespace, Name: SettingsName}, &settings); err != nil {
		return Created{}, fmt.Errorf("reading the cluster's settings: %w", err)
	}
	parsed, err := ParseSettings(settings.Data)
	if err != nil {
		return Created{}, err
	}
	servers, err := reachable(ctx, c, parsed.PodCIDR)
	if err != nil {
		return Created{}, err
	}
	if err := c.Get(ctx, client.ObjectKey{Namespace: metav1.NamespacePublic, Name: "cluster-info"}, &info); err != nil {
		return Created{}, fmt.Errorf("reading who signs for the cluster: %w", err)
	}
	config, err := clientcmd.Load([]byte(info.Data["kubeconfig"]))
	if err != nil {
		return Created{}, fmt.Errorf("reading who signs for the cluster: %w", err)
	}
	var text []byte
	for _, cluster := range config.Clusters {
		text = cluster.CertificateAuthorityData
	}
	ca, err := parseCA(text)
	if err != nil {
		return Created{}, fmt.Errorf("reading who signs for the cluster: %w", err)
	}
	out := Created{Token: NewToken(ca), Servers: servers, Expires: time.Now().Add(ttl).UTC().Truncate(time.Second)}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: secretPrefix + out.Token.ID},
		Type:       corev1.SecretTypeBootstrapToken,
		Data: map[string][]byte{
			"token-id": []byte(out.Token.ID), "token-secret": []byte(out.Token.Secret), expiryKey: []byte(out.Expires.Format(time.RFC3339)),
			"usage-bootstrap-authentication": []byte("true"), "usage-bootstrap-signing": []byte("true"), groupsKey: []byte(role.Group()),
			"description": []byte("machines that join as a " + string(role) + " (gantry token create)"),
		},
	}
	if err := c.Create(ctx, secret); err != nil {
		return Created{}, fmt.Errorf("making the token: %w", err)
	}
	return out, nil
}

// reachable are the servers' addresses that are no loopback's and no pod bridge's.
func reachable(ctx context.Context, c client.Client, pods netip.Prefix) ([]string, error) {
	var slice discoveryv1.EndpointSlice
	if err := c.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}, &slice); err != nil {
		return nil, fmt.Errorf("reading where the cluster's API is served: %w", err)
	}
	port := DefaultPort
	if len(slice.Ports) > 0 && slice.Ports[0].Port != nil {
		port = int(*slice.Ports[0].Port)
	}
	var good, all []string
	for _, endpoint := range slice.Endpoints {
		for _, text := range endpoint.Addresses {
			at := net.JoinHostPort(text, strconv.Itoa(port))
			all = append(all, at)
			if addr, err := netip.ParseAddr(text); err == nil && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !pods.Contains(addr) {
				good = append(good, at)
			}
		}
	}
	if len(good) == 0 {
		return nil, &UnreachableError{all}
	}
	return good, nil
}

// Listed is what is known of a token that was made.
type Listed struct {
	ID      string     `json:"id"`
	Role    Role       `json:"role"`
	Expires *time.Time `json:"expires,omitempty"` // nil: never
}

// ListTokens lists the tokens with which machines join, those that end first first.
func ListTokens(ctx context.Context, c client.Client) ([]Listed, error) {
	var secrets corev1.SecretList
	if err := c.List(ctx, &secrets, client.InNamespace(metav1.NamespaceSystem)); err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}
	var out []Listed
	for i := range secrets.Items {
		if listed, ok := listedOf(&secrets.Items[i]); ok && (listed.Expires == nil || listed.Expires.After(time.Now())) {
			out = append(out, listed)
		}
	}
	slices.SortFunc(out, func(a, b Listed) int {
		switch {
		case a.Expires == nil || b.Expires == nil:
			return strings.Compare(a.ID, b.ID)
		default:
			return a.Expires.Compare(*b.Expires)
		}
	})
	return out, nil
}

// listedOf reads a token's Secret; false is: it is no token for machines.
func listedOf(secret *corev1.Secret) (Listed, bool) {
	groups := strings.Split(string(secret.Data[groupsKey]), ",")
	for _, role := range []Role{Worker, Server} {
		if secret.Type != corev1.SecretTypeBootstrapToken || !slices.Contains(groups, role.Group()) {
			continue
		}
		out := Listed{ID: string(secret.Data["token-id"]), Role: role}
		if at, err := time.Parse(time.RFC3339, string(secret.Data[expiryKey])); err == nil {
			out.Expires = &at
		}
		return out, true
	}
	return Listed{}, false
}

// ErrNoToken is returned for a token that is not there.
var ErrNoToken = errors.New("there is no such token")

// RevokeToken takes a token away: nobody joins with it any more. Machines that did stay.
func RevokeToken(ctx context.Context, c client.Client, id string) error {
	id, _, _ = strings.Cut(id, ".")
	var secret corev1.Secret
	err := c.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: secretPrefix + id}, &secret)
	if apierrors.IsNotFound(err) {
		return ErrNoToken
	}
	if err != nil {
		return fmt.Errorf("reading the token: %w", err)
	}
	if _, ok := listedOf(&secret); !ok {
		return ErrNoToken
	}
	if err := c.Delete(ctx, &secret); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("revoking the token: %w", err)
	}
	return nil
}
