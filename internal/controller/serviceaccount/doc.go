// Package serviceaccount gives every namespace what pods in it need to speak to the API:
// the ServiceAccount "default" and the ConfigMap "kube-root-ca.crt" with the cluster's CA.
// Both come back when they are deleted, and the ConfigMap when it is changed.
// Start at Controller.Run.
package serviceaccount
