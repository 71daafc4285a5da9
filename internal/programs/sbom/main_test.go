package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestSBOM lists this test's own program, as gantry and as what gantry embeds.
func TestSBOM(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"INDEX": []byte("runc 00 1 v1.5.2\ngantry-edge 00 1 (devel)\n"),
		"runc.zst": encoder.EncodeAll(program, nil), "gantry-edge.zst": encoder.EncodeAll(program, nil)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out, again bytes.Buffer
	for _, to := range []*bytes.Buffer{&out, &again} {
		if err := run([]string{"v1.2.3", self, dir}, to); err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != again.String() {
		t.Error("a second document differs")
	}
	var doc document
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Format != "CycloneDX" || doc.Metadata.Component.Version != "v1.2.3" {
		t.Errorf("the document begins with %+v", doc.Metadata)
	}
	names := map[string]string{}
	for _, c := range doc.Components {
		names[c.Name] = c.Version
	}
	if names["runc"] != "v1.5.2" || names["gantry-edge"] != "v1.2.3" || names["std"] == "" {
		t.Errorf("the components are %v", names)
	}
	if !strings.Contains(out.String(), `"pkg:golang/github.com/klauspost/compress@v`) || !strings.Contains(out.String(), "libseccomp") {
		t.Errorf("modules are missing in %s", out.String())
	}
}
