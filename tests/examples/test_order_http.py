"""What a customer sees of the order service: answers that say what was wrong."""

from functools import partial
from typing import Any
from uuid import uuid4

import anyio
import pytest
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import Engine, create_engine

from examples.order_service.order import services
from examples.order_service.order.app import app

ANN = str(uuid4())


class Client:
    """Speaks HTTP to the application, without a socket between."""

    def __init__(self) -> None:
        self.get = partial(self.request, "GET")
        self.post = partial(self.request, "POST")
        self.patch = partial(self.request, "PATCH")
        self.delete = partial(self.request, "DELETE")

    def request(self, method: str, path: str, **body: Any) -> Response:
        async def send() -> Response:
            async with AsyncClient(transport=ASGITransport(app), base_url="http://order") as client:
                return await client.request(method, path, **body)

        return anyio.run(send)


@pytest.fixture
def client(orders: Engine) -> Client:
    return Client()


def place(client: Client, total: str = "9.90") -> str:
    answer = client.post("/orders", json={"customer_id": ANN, "total": total})
    assert answer.status_code == 201
    order_id: str = answer.json()["order_id"]
    assert answer.headers["location"] == f"/orders/{order_id}"
    return order_id


def test_an_order_is_placed_changed_cancelled_and_shown(client: Client) -> None:
    order_id = place(client, "9.9")
    assert client.patch(f"/orders/{order_id}", json={"total": 12.5}).status_code == 204
    assert client.post(f"/orders/{order_id}/cancel").status_code == 204
    shown = client.get(f"/orders/{order_id}").json()
    assert shown.pop("placed_at") < shown.pop("cancelled_at")
    assert shown == {"order_id": order_id, "customer_id": ANN, "total": "12.50", "revision": 3}


def test_a_customer_may_choose_the_order_id_and_ask_again(client: Client) -> None:
    chosen = {"customer_id": ANN, "total": "1.00", "order_id": str(uuid4())}
    assert client.post("/orders", json=chosen).json() == {"order_id": chosen["order_id"]}
    again = client.post("/orders", json=chosen)
    assert (again.status_code, again.json()) == (
        409,
        {"error": f"Order {chosen['order_id']} has been placed already."},
    )


@pytest.mark.parametrize(
    ("body", "field", "problem"),
    [
        ({"total": "9.90"}, "customer_id", "required"),
        ({"customer_id": "ann", "total": "9.90"}, "customer_id", "UUID"),
        ({"customer_id": ANN, "total": "0"}, "total", "greater than 0"),
        ({"customer_id": ANN, "total": "-1"}, "total", "greater than 0"),
        ({"customer_id": ANN, "total": "1.999"}, "total", "2 decimal places"),
        ({"customer_id": ANN, "total": "NaN"}, "total", "finite"),
        ({"customer_id": ANN, "total": "much"}, "total", "decimal"),
        ({"customer_id": ANN, "total": "9" * 40}, "total", "digits"),
        ({"customer_id": ANN, "total": "9.90", "cutomer": 1}, "cutomer", "not permitted"),
    ],
)
def test_a_request_that_cannot_be_meant_is_422_and_names_the_field(
    client: Client, body: dict[str, object], field: str, problem: str
) -> None:
    answer = client.post("/orders", json=body)
    assert answer.status_code == 422
    assert [p["field"] for p in answer.json()["problems"]] == [field]
    assert problem in answer.json()["error"]


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '"order"', "\x00"])
def test_a_body_that_is_no_json_object_is_422(client: Client, body: str) -> None:
    answer = client.post("/orders", content=body)
    assert answer.status_code == 422
    assert "body:" in answer.json()["error"]


def test_an_order_above_the_credit_limit_is_422_and_does_not_exist(client: Client) -> None:
    order_id = str(uuid4())
    answer = client.post("/orders", json={"customer_id": ANN, "total": "10000.01", "order_id": order_id})
    assert (answer.status_code, answer.json()) == (
        422,
        {"error": "An order of 10000.01 is above the credit limit of 10000.00."},
    )
    assert client.get(f"/orders/{order_id}").status_code == 404


@pytest.mark.parametrize("order_id", ["d0b0f31c-47d9-4e21-9280-b6f1e5e93093", "17"])
def test_an_unknown_order_is_404(client: Client, order_id: str) -> None:
    answers = [
        client.get(f"/orders/{order_id}"),
        client.patch(f"/orders/{order_id}", json={"total": "1"}),
        client.post(f"/orders/{order_id}/cancel"),
    ]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert all(f"no order {order_id}" in answer.json()["error"] for answer in answers)


def test_cancelling_or_changing_a_cancelled_order_is_409(client: Client) -> None:
    order_id = place(client)
    client.post(f"/orders/{order_id}/cancel")
    answers = [
        client.post(f"/orders/{order_id}/cancel"),
        client.patch(f"/orders/{order_id}", json={"total": "1"}),
    ]
    assert [answer.status_code for answer in answers] == [409] * 2
    assert answers[0].json() == {"error": f"Order {order_id} is cancelled; that is final."}


def test_unknown_paths_and_methods_answer_in_json_too(client: Client) -> None:
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.delete("/orders").json() == {"error": "Method Not Allowed"}


def test_health_is_good_with_the_database_and_503_without(client: Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    nowhere = create_engine("postgresql+psycopg://postgres@127.0.0.1:1/nowhere")
    services.sessions.configure(bind=nowhere)
    for answer in (client.get("/health"), client.get(f"/orders/{uuid4()}")):
        assert answer.status_code == 503
        assert "does not answer" in answer.json()["error"]


def test_a_database_without_migrations_is_503_and_says_what_to_do(client: Client, database: str) -> None:
    engine = create_engine(database.replace("postgresql://", "postgresql+psycopg://", 1))
    services.sessions.configure(bind=engine)
    answer = client.post("/orders", json={"customer_id": ANN, "total": "1.00"})
    engine.dispose()
    assert answer.status_code == 503
    assert "--migrate" in answer.json()["error"]
