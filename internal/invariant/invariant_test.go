package invariant

import "testing"

func TestCheck(t *testing.T) {
	Check(true, "not %s", "seen")
	defer func() {
		if got := recover(); got != "invariant broken: revision 4 after 5" {
			t.Errorf("panic is %v", got)
		}
	}()
	Check(false, "revision %d after %d", 4, 5)
}
