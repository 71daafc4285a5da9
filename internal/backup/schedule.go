package backup

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Schedule says when backups are made.
type Schedule struct{ when cron.Schedule }

// ParseSchedule reads hourly, daily (at 3), weekly, or the five fields of cron. Times are UTC.
func ParseSchedule(text string) (Schedule, error) {
	expression := strings.TrimSpace(text)
	switch expression {
	case "hourly":
		expression = "7 * * * *"
	case "daily":
		expression = "7 3 * * *"
	case "weekly":
		expression = "7 3 * * 0"
	}
	if strings.HasPrefix(expression, "TZ=") || strings.HasPrefix(expression, "CRON_TZ=") || strings.HasPrefix(expression, "@") {
		return Schedule{}, fmt.Errorf("the schedule %q: want hourly, daily, weekly or five fields of cron, in UTC", text)
	}
	when, err := cron.ParseStandard(expression)
	if err != nil {
		return Schedule{}, fmt.Errorf("the schedule %q: want hourly, daily, weekly or five fields of cron: %w", text, err)
	}
	return Schedule{when}, nil
}

// Next is the first time after t; zero if there is none.
func (s Schedule) Next(t time.Time) time.Time { return s.when.Next(t.UTC()) }
