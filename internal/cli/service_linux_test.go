package cli

import (
	"strings"
	"testing"

	"gantry.dev/gantry/internal/config"
)

func TestUnit(t *testing.T) {
	c, err := config.Load(config.Options{Environ: []string{"GANTRY_DATA_DIR=/data dir", "GANTRY_TLS_SAN=a.example,b.example", "GANTRY_LISTEN=0.0.0.0:7443"}})
	if err != nil {
		t.Fatal(err)
	}
	text := unitText(append([]string{"/opt/100%/gantry", "up"}, serviceArgs(c)...))
	want := `ExecStart=/opt/100%%/gantry up "--data-dir=/data dir" --listen=0.0.0.0:7443 --tls-san=a.example --tls-san=b.example` + "\n"
	for _, line := range []string{want, "KillMode=process\n", "Delegate=yes\n", "Type=notify\n", "WantedBy=multi-user.target\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("the unit does not hold %q:\n%s", line, text)
		}
	}
	if strings.Contains(text, "pod-cidr") {
		t.Error("the unit fixes a setting that was not given")
	}
}
