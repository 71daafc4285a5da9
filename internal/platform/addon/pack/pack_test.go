package pack

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPackages(t *testing.T) {
	if got := strings.Join(Names(), " "); got != "postgres redis" {
		t.Fatalf("Names = %q", got)
	}
	for _, name := range Names() {
		p, err := Find(name)
		if err != nil {
			t.Fatal(err)
		}
		if p.Name != name || p.Addon == "" || len(p.Versions) == 0 || p.Port == 0 || p.UID == 0 || p.Stop.Seconds == 0 || p.Extension == "" || (p.Magic == "") != (p.LoadText == "") {
			t.Errorf("the package %s is not whole: %+v", name, p)
		}
		for what, script := range map[string]string{"start": p.Start, "ready": p.Ready, "dump": p.Dump, "load": p.Load, "connect": p.Connect, "text": p.LoadText} {
			if out, err := exec.Command("sh", "-n", "-c", script).CombinedOutput(); err != nil || script == "" && what != "text" {
				t.Errorf("%s: the script %s is no shell script: %v\n%s", name, what, err, out)
			}
		}
	}
	if _, err := Find("mysql"); err == nil || !strings.Contains(err.Error(), "there is postgres, redis") {
		t.Errorf("Find of an unknown package: %v", err)
	}
}

func TestVersion(t *testing.T) {
	p, err := Find("postgres")
	if err != nil {
		t.Fatal(err)
	}
	for asked, want := range map[string]string{"": "17", "15": "15"} {
		if got, err := p.Version(asked); got != want || err != nil {
			t.Errorf("Version(%q) = %q, %v; want %q", asked, got, err, want)
		}
	}
	if _, err := p.Version("9"); err == nil || !strings.Contains(err.Error(), "17, 16") {
		t.Errorf("Version of an unknown one: %v", err)
	}
	if got := p.ImageOf("17", nil); got != "docker.io/library/postgres:17" {
		t.Errorf("ImageOf = %q", got)
	}
	if got := p.ImageOf("17", map[string]string{"addon.postgres.17": "mirror/postgres:17.2"}); got != "mirror/postgres:17.2" {
		t.Errorf("ImageOf with a setting = %q", got)
	}
}

func TestCredentials(t *testing.T) {
	p, err := Find("postgres")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"DATABASE_URL": "postgres://app:secret@shop-my-db:5432/app?sslmode=disable", "MY_DB_URL": "postgres://app:secret@shop-my-db:5432/app?sslmode=disable",
		"MY_DB_HOST": "shop-my-db", "MY_DB_PORT": "5432", "MY_DB_USER": "app", "MY_DB_NAME": "app", "MY_DB_PASSWORD": "secret",
	}
	if diff := cmp.Diff(want, p.Credentials("my-db", "shop-my-db", "secret", true)); diff != "" {
		t.Errorf("Credentials (-want +got):\n%s", diff)
	}
	if _, has := p.Credentials("my-db", "shop-my-db", "secret", false)["DATABASE_URL"]; has {
		t.Error("one of two of a type has DATABASE_URL")
	}
}
