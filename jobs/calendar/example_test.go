package calendar_test

import (
	"fmt"
	"log"
	"time"

	"github.com/seed-3f7a0631/tes/jobs/calendar"
)

// Eight working hours from Friday afternoon end on Tuesday: neither the week-end nor the holiday
// on Monday counts.
func ExampleCalendar_Add() {
	office, err := calendar.New(calendar.Spec{Country: "DE", Zone: "Europe/Berlin", Start: "08:00", End: "18:00"})
	if err != nil {
		log.Fatal(err)
	}

	// 22 May 2026 is the Friday before Whit Monday.
	from := time.Date(2026, time.May, 22, 14, 0, 0, 0, time.UTC) // 16:00 in Berlin
	fmt.Println(office.Add(from, 8*time.Hour).Format(time.RFC3339))
	fmt.Println(office.Week())
	// Output:
	// 2026-05-26T12:00:00Z
	// 50h0m0s
}
