//go:build ignore

// Command generate copies the definitions from the Gateway API's module into this folder,
// as compressed JSON.
package main

import (
	"bytes"
	"compress/gzip"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

func main() {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		log.Fatal(err)
	}
	module := strings.TrimSpace(string(out))
	for _, kind := range []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"} {
		data, err := os.ReadFile(filepath.Join(module, "config/crd/standard", "gateway.networking.k8s.io_"+kind+".yaml"))
		if err != nil {
			log.Fatal(err)
		}
		if data, err = yaml.YAMLToJSON(data); err != nil {
			log.Fatal(err)
		}
		var packed bytes.Buffer
		w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if _, err := w.Write(data); err != nil {
			log.Fatal(err)
		}
		if err := w.Close(); err != nil {
			log.Fatal(err)
		}
		write(kind+".json.gz", packed.Bytes())
	}
	license, err := os.ReadFile(filepath.Join(module, "LICENSE"))
	if err != nil {
		log.Fatal(err)
	}
	write("LICENSE", license)
}

func write(name string, data []byte) {
	if err := os.WriteFile(name, data, 0o644); err != nil {
		log.Fatal(err)
	}
}
