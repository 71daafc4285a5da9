// Package pki makes, checks and renews the keys and certificates of one Gantry data dir.
//
// File names and split are kubeadm's, so that upstream's programs can take the folder over. Keys
// are ECDSA P-256; authorities last ten years, leaves one, and a leaf is replaced at two thirds of
// its life, or when the names in it no longer fit, without a restart: TLS configurations ask the
// Authority for each handshake. Authorities are never replaced: losing one needs a person.
//
// In use now: ca, front-proxy-ca, etcd/ca, sa, apiserver, apiserver-kubelet-client,
// front-proxy-client, etcd/server, etcd/peer, kubelet, kubelet-client, admin, super-admin. The
// embedded etcd has no client socket, so kubeadm's apiserver-etcd-client and
// etcd/healthcheck-client do not exist, and the controllers and the scheduler run in the process,
// so they have no certificates. Start at Authority.Ensure.
package pki
