package upstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// encryptionConfig encrypts Secrets with the provider that Gantry uses.
const encryptionConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox:
      keys:
      - {name: key1, secret: %s}
  - identity: {}
`

// writeFiles makes all keys, certificates and configurations in dir. addresses are kube-apiserver's beside the loopback ones.
func writeFiles(dir, apiURL string, addresses ...net.IP) error {
	ca, err := NewAuthority("kubernetes")
	if err != nil {
		return err
	}
	front, err := NewAuthority("front-proxy-ca")
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": ca.pem, "front-proxy-ca.crt": front.pem}
	if files["ca.key"], err = encodeKey(ca.key.(*ecdsa.PrivateKey)); err != nil {
		return err
	}
	server, err := ca.Server("kube-apiserver", addresses...)
	if err != nil {
		return err
	}
	files["apiserver.crt"], files["apiserver.key"] = server.Cert, server.Key
	kubelets, err := ca.Client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return err
	}
	files["kubelet-client.crt"], files["kubelet-client.key"] = kubelets.Cert, kubelets.Key
	proxy, err := front.Client("front-proxy-client")
	if err != nil {
		return err
	}
	files["front-proxy-client.crt"], files["front-proxy-client.key"] = proxy.Cert, proxy.Key
	if err := serviceAccountKeys(files); err != nil {
		return err
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return fmt.Errorf("upstream: make an encryption key: %w", err)
	}
	files["encryption.yaml"] = fmt.Appendf(nil, encryptionConfig, base64.StdEncoding.EncodeToString(secret))
	for name, groups := range map[string][]string{
		"kubernetes-admin": {"system:masters"}, "system:kube-controller-manager": nil, "system:kube-scheduler": nil,
	} {
		pair, err := ca.Client(name, groups...)
		if err != nil {
			return err
		}
		if files[kubeconfigName(name)], err = Kubeconfig(apiURL, ca.pem, pair); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("upstream: write %s: %w", name, err)
		}
	}
	return nil
}

func kubeconfigName(user string) string {
	return map[string]string{
		"kubernetes-admin":               "admin.kubeconfig",
		"system:kube-controller-manager": "controller-manager.kubeconfig",
		"system:kube-scheduler":          "scheduler.kubeconfig",
	}[user]
}

// serviceAccountKeys makes the pair that signs and checks service account tokens.
func serviceAccountKeys(files map[string][]byte) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("upstream: make the key of service accounts: %w", err)
	}
	if files["sa.key"], err = encodeKey(key); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("upstream: encode the key of service accounts: %w", err)
	}
	files["sa.pub"] = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	return nil
}

// Kubeconfig is the content of a kubeconfig file for one user of one cluster.
func Kubeconfig(apiURL string, ca []byte, client Pair) ([]byte, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["cluster"] = &clientcmdapi.Cluster{Server: apiURL, CertificateAuthorityData: ca}
	config.AuthInfos["user"] = &clientcmdapi.AuthInfo{ClientCertificateData: client.Cert, ClientKeyData: client.Key}
	config.Contexts["context"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: "user"}
	config.CurrentContext = "context"
	content, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("upstream: encode a kubeconfig: %w", err)
	}
	return content, nil
}
