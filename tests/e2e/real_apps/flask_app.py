"""A Flask app with server-sent events. Usage: flask_app.py PORT"""
import sys, threading
from flask import Flask, Response, request

app = Flask(__name__)
notes, more = [], threading.Condition()


@app.get("/")
def index():
    return {"notes": notes, "scheme": request.headers["X-Forwarded-Proto"], "host": request.host}


@app.post("/notes")
def add():
    with more:
        notes.append(request.form["text"])
        more.notify_all()
    return {"count": len(notes)}, 201


@app.get("/events")
def events():
    def stream():
        for number in range(3):
            with more:
                more.wait_for(lambda: len(notes) > number)
            yield f"id: {number}\ndata: {notes[number]}\n\n"

    return Response(stream(), mimetype="text/event-stream")


app.run(host="127.0.0.1", port=int(sys.argv[1]), threaded=True)
