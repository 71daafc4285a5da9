package podconfig

import (
	"strings"
	"testing"
)

func TestEnvFileValue(t *testing.T) {
	const file = "# comment\n\n  A='one'\nB='two' # why\nC='x\ny'\nD= 'no'\nE=''\nA='later'\n"
	for name, tc := range map[string]struct{ file, key, want, wantErr string }{
		"first wins":      {file, "A", "one", ""},
		"comment":         {file, "B", "two", ""},
		"several lines":   {file, "C", "x\ny", ""},
		"blank after =":   {file, "D", "", ""},
		"empty":           {file, "E", "", ""},
		"missing":         {file, "Z", "", ""},
		"no =":            {"A\n", "A", "", "line 1: missing '='"},
		"blank before =":  {"A ='x'\n", "A", "", "whitespace before '='"},
		"no name":         {"='x'\n", "A", "", "empty variable name"},
		"no quotes":       {"\nA=x\n", "A", "", "line 2: value must be enclosed"},
		"junk":            {"A='x'y\n", "A", "", "unexpected content"},
		"unclosed":        {"A='x\ny\n", "A", "", "line 1: unclosed"},
		"broken later on": {"A='x'\njunk\n", "A", "x", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := EnvFileValue(strings.NewReader(tc.file), tc.key)
			if got != tc.want || (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("EnvFileValue = %q, %v; want %q, %q", got, err, tc.want, tc.wantErr)
			}
		})
	}
}
