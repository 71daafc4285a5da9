package join

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Role is what a machine is in its cluster.
type Role string

// Roles.
const (
	Worker Role = "worker" // a node only
	Server Role = "server" // store, API and controllers, and a node
)

// Group is the group of who holds a token for machines of this role.
func (r Role) Group() string { return "system:bootstrappers:gantry:" + string(r) + "s" }

// Token is what a machine joins with: a bootstrap token of Kubernetes, and the pin of the cluster's authority.
type Token struct {
	ID     string // 6 of a-z and 0-9; not secret
	Secret string // 16 of a-z and 0-9
	Pin    string // see Pin
}

// NewToken draws a token for a cluster whose authority has this certificate.
func NewToken(ca *x509.Certificate) Token {
	return Token{ID: draw(6), Secret: draw(16), Pin: Pin(ca)}
}

// draw is n random letters and digits.
func draw(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	out := make([]byte, 0, n)
	var b [1]byte
	for len(out) < n {
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		if limit := 256 - 256%len(letters); int(b[0]) < limit {
			out = append(out, letters[int(b[0])%len(letters)])
		}
	}
	return string(out)
}

// Pin is the SHA-256 of a certificate's public key (SubjectPublicKeyInfo), base64url without padding.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// ParseToken reads a token as String writes it.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	bad := errors.New("the token is not ID.SECRET.PIN as \"gantry token create\" prints it")
	if len(parts) != 3 || !regexp.MustCompile(`^[a-z0-9]{6}$`).MatchString(parts[0]) || !regexp.MustCompile(`^[a-z0-9]{16}$`).MatchString(parts[1]) {
		return Token{}, bad
	}
	if sum, err := base64.RawURLEncoding.DecodeString(parts[2]); err != nil || len(sum) != sha256.Size {
		return Token{}, bad
	}
	return Token{ID: parts[0], Secret: parts[1], Pin: parts[2]}, nil
}

// String is ID.SECRET.PIN.
func (t Token) String() string { return t.Bootstrap() + "." + t.Pin }

// Bootstrap is the part that the API knows: a bearer token.
func (t Token) Bootstrap() string { return t.ID + "." + t.Secret }

// parseCA reads the first certificate of a PEM text.
func parseCA(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("there is no certificate in it")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	return cert, nil
}
