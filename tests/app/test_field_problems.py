"""What is said of wrong fields: in the words of JSON, with what came and what would be right."""

import json

import pytest

from tests.app.service import Service

JSON = {"content-type": "application/json"}
MANY = json.dumps({str(at): "" for at in range(17)})


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('"size": "auto"', 'Should be "WxH" in pixels, as "64x64", not "auto"'),
        ('"background": "red"', 'Should be "transparent", "white" or "#rrggbb", not "red"'),
        ('"guidance_interval": {"to": 1}', 'Should be an array, not {"to": 1}'),
        ('"guidance_interval": [0, 0.5, 1]', "Should have at most 2 items"),
        ('"lora": "x"', 'Should be an array, not "x"'),
        ('"lora": [7]', "Should be an object, not 7"),
        ('"metadata": []', "Should be an object, not []"),
        (f'"metadata": {MANY}', "Should have at most 16 items"),
        ('"seed": ' + "9" * 5000, "less than or equal to 9007199254740991, not 999999"),
        ('"background": "transparent", "output_format": "jpeg"', "another background or output"),
    ],
)
async def test_a_wrong_field(service: Service, field: str, said: str) -> None:
    body = f'{{"prompt": "x", {field}}}'.encode()
    answer = await service.client.post("/v1/jobs", content=body, headers=JSON)
    [one] = answer.json()["errors"]
    assert said in one["message"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("limt=3", "No such field; check the spelling"),
        ("limit=x", 'Input should be a valid integer, not "x"'),
        ("limit=101", 'less than or equal to 100, not "101"'),
        ("status=done", "or 'canceled', not \"done\""),
        ("cursor=x", 'Should be `next_cursor` of an answer, as it was given, not "x"'),
    ],
)
async def test_a_wrong_parameter(service: Service, query: str, said: str) -> None:
    problem = (await service.client.get(f"/v1/jobs?{query}")).json()
    assert problem["detail"] == f"Not valid: /{query.partition('=')[0]}"
    assert said in problem["errors"][0]["message"]


async def test_a_field_is_named_once_however_much_is_wrong_with_it(service: Service) -> None:
    body = {"prompt": "x", "mask": "data:image/png;base64,AAAA"}
    problem = (await service.client.post("/v1/jobs", json=body)).json()
    assert problem["detail"] == "Not valid: /mask"
    assert len(problem["errors"]) == 2
