package peertest

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/google/uuid"
)

// channels are the channels of notifications.
var channels = []string{"in-app", "email", "push", "chat"}

// person is a user in the User Service's responses.
type person struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Roles     []string `json:"roles"`
	Skills    []string `json:"skills"`
	Available bool     `json:"available"`
}

// userByID knows every id: an available user of that name.
func userByID(w http.ResponseWriter, r *http.Request, _ Steering) {
	id := r.PathValue("id")
	writeJSON(w, http.StatusOK, person{ID: id, Name: id, Roles: []string{}, Skills: []string{}, Available: true})
}

// usersByRole finds two users for each role, with all requested skills.
func usersByRole(w http.ResponseWriter, r *http.Request, _ Steering) {
	role := r.URL.Query().Get("role")
	people := []person{}
	if role != "" {
		skills := append([]string{}, r.URL.Query()["skill"]...)
		for _, id := range []string{role + "-1", role + "-2"} {
			people = append(people, person{ID: id, Name: id, Roles: []string{role}, Skills: skills, Available: true})
		}
	}

	writeJSON(w, http.StatusOK, people)
}

func notify(w http.ResponseWriter, r *http.Request, _ Steering) {
	var note struct {
		Channel string `json:"channel"`
		UserID  string `json:"userId"`
	}

	if err := json.NewDecoder(r.Body).Decode(&note); err != nil || note.UserID == "" || !slices.Contains(channels, note.Channel) {
		writeError(w, http.StatusUnprocessableEntity, "VALIDATION_ERROR", "a userId and one of the channels in-app, email, push, chat are asked for")
		return
	}

	writeJSON(w, http.StatusAccepted, map[string]any{"notificationId": uuid.New(), "channel": note.Channel})
}

func allocate(w http.ResponseWriter, r *http.Request, _ Steering) {
	var asked struct {
		TaskID string `json:"taskId"`
		CPU    string `json:"cpu"`
		Memory string `json:"memory"`
		Disk   string `json:"disk"`
	}

	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.TaskID == "" {
		writeError(w, http.StatusUnprocessableEntity, "VALIDATION_ERROR", "a taskId is asked for")
		return
	}

	writeJSON(w, http.StatusCreated, map[string]any{
		"allocationId": uuid.New(), "taskId": asked.TaskID,
		"cpu": asked.CPU, "memory": asked.Memory, "disk": asked.Disk,
	})
}

// accepted accepts a batch of spans.
func accepted(w http.ResponseWriter, _ *http.Request, _ Steering) {
	w.WriteHeader(http.StatusAccepted)
}

// callback accepts a status update, unless steering says otherwise.
func callback(w http.ResponseWriter, _ *http.Request, _ Steering) {
	writeJSON(w, http.StatusOK, map[string]any{"received": true})
}
